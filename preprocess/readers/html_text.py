"""The parts of resiliparse that Folio uses: the main text of an HTML page, and names of charsets.

The child process of page_process.py imports this module, so it imports neither NumPy nor Arrow.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator

from preprocess.errors import MisuseError
from preprocess.readers.utf8 import Buffer

META_BYTES = 4_096  # of a page in which the name of its charset is searched; the HTML standard asks for 1,024
# A comment is skipped, because a charset in it does not count. A quoted value of an attribute may have a ">".
COMMENT_OR_META = re.compile(
    rb"""<!(?=--).*?(?:-->|\Z)|<meta[\s/]((?:[^>"']|"[^"]*"|'[^']*')*)>""", re.IGNORECASE | re.DOTALL
)
ATTRIBUTE = re.compile(rb"""([^\s"'>/=]+)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+)))?""")
CHARSET_OF_CONTENT = re.compile(rb"charset\s*=\s*[\"']?\s*([^\s\"';]+)", re.IGNORECASE)
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
    codecs = (_find_codec(name.decode("ascii", "replace")) for name in _iter_meta_charsets(head))
    of_page = next(filter(None, codecs), None)
    return "utf-8" if of_page is not None and of_page.lower().startswith("utf-16") else of_page  # `<meta` was ASCII


def _iter_meta_charsets(head: bytes) -> Iterator[bytes]:
    """Yield the charset that each `<meta>` of a page names, in `charset` or, as a `Content-Type`, in `content`."""
    for tag in COMMENT_OR_META.finditer(head):
        attributes: dict[bytes, bytes] = {}
        for name, *values in ATTRIBUTE.findall(tag[1] or b""):
            attributes.setdefault(name.lower(), b"".join(values).strip())
        if charset := attributes.get(b"charset"):
            yield charset
        elif attributes.get(b"http-equiv", b"").lower() == b"content-type":
            yield from CHARSET_OF_CONTENT.findall(attributes.get(b"content", b""))[:1]


def _find_codec(charset: str) -> str | None:
    from resiliparse.parse.encoding import map_encoding_to_html5

    codec: str | None = map_encoding_to_html5(charset, fallback_utf8=False)
    return codec
