"""The languages that the filter `language` can identify.

The model is part of the package py3langid, which is optional. A recipe is checked without it, so the
codes of its languages are listed here.
"""

from __future__ import annotations

PACKAGE = "py3langid"
MODEL_SHA256 = "f4f4a2c3465ca1f081541037f9cac23021d68151c2f709c55ae5eedfca522963"  # of model.npz.xz in py3langid 0.4.0
UNDETERMINED = "und"  # the code of ISO 639 for a text whose language is not known

# The codes of ISO 639-1, and those of ISO 639-3 for languages that have no other. zh is every written Chinese except
# Wu (wuu) and Cantonese (yue), no is Norwegian Bokmål, and zxx is text in no language, such as tables and markup.
_CODES = """
    ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo fr fuv
    fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko ku ky
    la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh
    se si sk sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh zu zxx
"""
LANGUAGE_CODES = tuple(_CODES.split())
