"""Bytes that are not UTF-8 in long texts."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.readers import utf8
from preprocess.readers.utf8 import find_invalid_utf8, replace_invalid_utf8
from tests.helpers.memory import measure_peak_bytes


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([b"a", b"\xff", b"\xe4\xb8", b"\xad", "é中😀".encode()]), max_size=30).map(b"".join),
    st.integers(4, 12),
)
def test_invalid_utf8_is_found_and_replaced_as_by_python(
    monkeypatch: pytest.MonkeyPatch, data: bytes, slice_bytes: int
) -> None:
    monkeypatch.setattr("preprocess.readers.utf8.SLICE_BYTES", slice_bytes)
    try:
        data.decode()
    except UnicodeDecodeError as e:
        assert find_invalid_utf8(data) == (e.start, e.reason)
    else:
        assert find_invalid_utf8(data) is None
    assert replace_invalid_utf8(data) == data.decode(errors="replace").encode()


def test_replacing_invalid_utf8_needs_little_more_memory_than_the_result() -> None:
    data = b"\xff" * 8_000_000
    assert measure_peak_bytes(lambda: replace_invalid_utf8(data)) < 1.6 * 3 * len(data)


@pytest.mark.parametrize("codec", ["utf-8", "utf-16-le", "shift_jis", "gb18030", "windows-1251", "ascii"])
def test_text_in_slices_is_decoded_as_a_whole(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utf8, "SLICE_BYTES", 3)
    chooser = random.Random(1)
    for _ in range(500):
        data = chooser.choice(["plain", "текст", "日本語", ""]).encode(codec, "ignore")
        data = data[: chooser.randrange(12)] + chooser.randbytes(chooser.randrange(3)) + data
        assert utf8.transcode(data, codec) == data.decode(codec, "replace").encode("utf-8", "replace")
        try:
            data.decode(codec)
            expected = None
        except UnicodeDecodeError as e:
            expected = e.start, e.reason
        assert utf8.find_invalid(data, codec) == expected
