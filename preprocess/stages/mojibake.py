"""Text that was decoded with the wrong character set, put right by ftfy: the only file that imports it."""

from __future__ import annotations

from preprocess.errors import MisuseError


def fix(text: str) -> str:
    """`text` with mojibake repaired, and nothing else changed. Raises MisuseError where ftfy is not installed."""
    try:
        import ftfy
    except ImportError as e:
        raise MisuseError(
            "the cleaning rule mojibake needs ftfy; install it with `pip install 'folio-lm[mojibake]'`, or leave the rule out"
        ) from e
    mended: str = ftfy.fix_encoding(text)
    return mended
