"""Which inputs are URLs. They are not paths, so they are not relative to the recipe file."""

from __future__ import annotations

import re

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # at least two characters: a single one is a Windows drive


def is_url(entry: str) -> bool:
    """Return whether one of `inputs` is a URL. `file:///path` is one, too."""
    return URL.match(entry) is not None
