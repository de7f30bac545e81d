"""The numbering of control tokens."""

from __future__ import annotations

import pytest

from preprocess.errors import FolioError
from preprocess.shards.control_tokens import ControlTokenIds


def test_assign_numbers_by_first_appearance() -> None:
    control = ControlTokenIds(100, {"<|endoftext|>": 99})
    values = [("author", "Ann Lee"), ("year", 1623), ("author", "Ann Lee"), ("city", "Rome"), ("year", 1623)]
    assert [control.assign(*value) for value in values] == [100, 101, 100, 102, 101]
    assert control.by_token == {"<author_Ann_Lee>": 100, "<year_1623>": 101, "<city_Rome>": 102}


def test_assign_rejects_values_with_equal_tokens() -> None:
    control = ControlTokenIds(100, {"<year_0000>": 5})
    control.assign("author", "Ann Lee")
    for field, value in (("author", "Ann_Lee"), ("year", 0)):
        with pytest.raises(FolioError, match="two control tokens would be written '<.*>'; rename one of the two"):
            control.assign(field, value)


def test_assign_rejects_a_name_in_two_unicode_forms() -> None:
    """A column may contain `é`, and a file name of macOS `e` with a combining accent, for the same author."""
    control = ControlTokenIds(100, {})
    control.assign("author", "Zo\u00e9")
    with pytest.raises(FolioError, match="written '<author_Zoe\u0301>' in two Unicode forms .*; rename one of the two"):
        control.assign("author", "Zoe\u0301")
    assert control.assign("author", "Zoe") == 101
