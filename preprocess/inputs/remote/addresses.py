"""Recognise URLs among the inputs, and name their files without credentials."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit, urlunsplit

from preprocess.errors import MisuseError, shorten
from preprocess.inputs.download import redact_url
from preprocess.recipes.input_urls import is_url

# A page of a dataset, which people copy from their browser. /resolve/ is the file itself.
HUB_PAGE = re.compile(
    r"https://huggingface\.co/datasets/([^/?#]+/[^/?#]+)(?:/(?:tree|blob|viewer)/([^/?#]+)(?:/([^?#]*))?)?/?(?:[?#].*)?"
)


def is_remote(entry: str) -> bool:
    """Return whether one of `inputs` is a URL of something that is not on this machine."""
    return is_url(entry) and get_scheme(entry) != "file"


def get_scheme(url: str) -> str:
    """Return the scheme of a URL in lower case, such as "https"."""
    return url.partition("://")[0].lower()


def resolve_file_url(entry: str) -> str:
    """Return the path that a `file://` URL means, and any other entry as it is."""
    if not is_url(entry) or get_scheme(entry) != "file":
        return entry
    parts = urlsplit(entry)
    if parts.netloc not in ("", "localhost"):
        raise MisuseError(f"{shorten(entry)} names a file of another machine; expected file:///PATH")
    return unquote(parts.path)


def find_hub_address(url: str) -> str | None:
    """Return the hf:// URL of a dataset's page on huggingface.co, None for any other URL."""
    match = HUB_PAGE.fullmatch(url)
    if match is None:
        return None
    repo, revision, path = match.groups()
    if "/viewer/" in url:  # its address names a configuration and a split, not a revision
        revision, path = None, "/".join(filter(None, (revision, path)))
    return (
        f"hf://datasets/{repo}"
        + (f"@{revision}" if revision else "")
        + (f"/{unquote(path).rstrip('/')}" if path else "")
    )


def name_url(url: str) -> str:
    """Return `<scheme>/<host or bucket>/<path>`, the name of what a URL means, without its query.

    Names are unique, and sorted by them, files are in the order in which their copies on a disk
    would be read.
    """
    scheme, _, rest = redact_url(url).partition("://")
    return f"{scheme.lower()}/{unquote(rest)}"


def show_url(url: str) -> str:
    """Return a URL for messages: short, on one line, without credentials."""
    return shorten(redact_url(url))


def strip_login(url: str) -> str:
    """Return a URL without user name and password."""
    try:
        parts = urlsplit(url)
    except ValueError as e:
        raise MisuseError(f"{show_url(url)} is not a URL; check it") from e
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
