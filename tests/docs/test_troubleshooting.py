"""The messages in docs/troubleshooting.md are in the code."""

from __future__ import annotations

import ast
import functools
import re

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)


@functools.cache
def list_texts() -> tuple[str, ...]:
    """Return the texts in the code of both packages, with … in place of each value."""
    found = []
    for path in (*(ROOT / "preprocess").rglob("*.py"), *(ROOT / "train").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


@pytest.mark.parametrize("message", MESSAGES)
def test_message_is_in_the_code(message: str) -> None:
    assert any(message.rstrip() in text for text in list_texts()), "no text of the code contains this message"


def test_page_has_messages_of_every_part() -> None:
    assert len(MESSAGES) > 50 and len({*MESSAGES}) == len(MESSAGES)
