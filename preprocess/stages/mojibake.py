"""Repair text that was decoded with the wrong character set, using ftfy."""

from __future__ import annotations

from preprocess.errors import MisuseError


def fix_mojibake(text: str) -> str:
    """Return `text` with wrongly decoded characters repaired and without other changes.

    Raises MisuseError if ftfy is not installed.
    """
    try:
        import ftfy
    except ImportError as e:
        raise MisuseError(
            "the cleaning rule mojibake needs the package ftfy; install it with `pip install 'folio-lm[mojibake]'`, "
            "or leave the rule out"
        ) from e
    fixed: str = ftfy.fix_encoding(text)
    return fixed
