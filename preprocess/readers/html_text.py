"""The parts of resiliparse that Folio uses: the main text of an HTML page, and names of charsets.

The child process of page_process.py imports this module, so it imports neither NumPy nor Arrow.
"""

from __future__ import annotations

import importlib.util
import re

from preprocess.errors import MisuseError
from preprocess.readers.utf8 import Buffer

META_BYTES = 4_096  # of a page in which the name of its charset is searched; the HTML standard asks for 1,024
META_CHARSET = re.compile(rb"<meta\b[^>]*?\bcharset\s*=\s*[\"']?\s*([\w.:+-]+)", re.IGNORECASE)
BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}


def check_installed(path: str, extra: str, *modules: str) -> None:
    """Raise MisuseError if a module that reads the file `path` is not installed. `extra`: of folio-lm."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MisuseError(
                f"{path} needs the package {module}; install it with `pip install 'folio-lm[{extra}]'`, or leave the "
                "file out"
            )


def extract_main_text(page: str) -> str:
    """Return the main text of an HTML page, without navigation, scripts and forms; "" if there is none."""
    from resiliparse.extract.html2text import extract_plain_text

    text: str = extract_plain_text(page, main_content=True, preserve_formatting=True, alt_texts=False)
    return text.strip()


def find_codec_of_page(data: Buffer, charset: str | None) -> str | None:
    """Return Python's name of the encoding of a page, or None if the page does not name it.

    As in the HTML standard, a byte order mark counts first, then `charset`, the encoding that the
    server names, then the page itself. An unknown name is ignored.
    """
    head = bytes(data[:META_BYTES])
    for mark, codec in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return codec
    if charset and (of_server := _find_codec(charset.strip(" \"'"))):
        return of_server
    match = META_CHARSET.search(head)
    if match is None:
        return None
    of_page = _find_codec(match[1].decode("ascii", "replace"))
    return "utf-8" if of_page is not None and of_page.lower().startswith("utf-16") else of_page  # `<meta` was ASCII


def _find_codec(charset: str) -> str | None:
    from resiliparse.parse.encoding import map_encoding_to_html5

    codec: str | None = map_encoding_to_html5(charset, fallback_utf8=False)
    return codec
