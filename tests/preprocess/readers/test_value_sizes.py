from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from preprocess.readers import value_sizes
from preprocess.readers.value_sizes import ELEMENT_BYTES, measure_values

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
CHATS = [
    [{"role": "ab", "content": "x" * 10}],
    None,
    [],
    [{"role": "u", "content": None}, {"role": "", "content": "é"}],
]
CHAT_SIZES = [12 + ELEMENT_BYTES, 0, 0, 3 + 2 * ELEMENT_BYTES]
PAIRS, PAIR_SIZES = [["ab", "c"], None, ["d", ""]], [3 + 2 * ELEMENT_BYTES, 0, 1 + 2 * ELEMENT_BYTES]


@pytest.mark.parametrize("max_elements", [1, 2, 1 << 20])
@pytest.mark.parametrize(
    ("values", "type_", "sizes"),
    [
        (CHATS, pa.list_(MESSAGE), CHAT_SIZES),
        (CHATS, pa.large_list(MESSAGE), CHAT_SIZES),
        (PAIRS, pa.list_(pa.string(), 2), PAIR_SIZES),
        (PAIRS, pa.list_view(pa.string_view()), PAIR_SIZES),
        ([["ab"], ["c"]], pa.list_(pa.dictionary(pa.int8(), pa.string())), [2 + ELEMENT_BYTES, 1 + ELEMENT_BYTES]),
    ],
    ids=["list", "large_list", "fixed_size_list", "list_view", "dictionary"],
)
def test_measure_values_sums_the_values_of_lists_also_of_slices(
    monkeypatch: pytest.MonkeyPatch, values: list, type_: pa.DataType, sizes: list[int], max_elements: int
) -> None:
    """Of a list with more than MAX_ELEMENTS, only the elements count."""
    monkeypatch.setattr(value_sizes, "MAX_ELEMENTS", max_elements)
    column = pa.array(values, type_)
    expected = [
        size if len(value or ()) <= max_elements else len(value) * ELEMENT_BYTES
        for value, size in zip(values, sizes, strict=True)
    ]
    for start in range(len(values)):
        assert measure_values(column.slice(start)).tolist() == expected[start:]


def test_measure_values_does_not_decode_what_elements_share() -> None:
    """A column of a few megabytes would be 200 GB of text."""
    shared = pa.DictionaryArray.from_arrays(pa.array(np.zeros(200_000, np.int32)), pa.array(["x" * 1_000_000]))
    messages = pa.StructArray.from_arrays([shared], ["content"])
    column = pa.ListArray.from_arrays(pa.array([0, 100_000, 200_000], pa.int32()), messages)
    assert measure_values(column).tolist() == [100_000 * (1_000_000 + ELEMENT_BYTES)] * 2


def test_measure_values_counts_elements_that_take_no_memory() -> None:
    messages = pa.StructArray.from_arrays([pa.nulls(1 << 30), pa.nulls(1 << 30)], ["role", "content"])
    column = pa.ListArray.from_arrays(pa.array([0, 1 << 30], pa.int32()), messages)
    assert measure_values(column).tolist() == [ELEMENT_BYTES << 30]


@pytest.mark.parametrize(("type_", "num_values"), [(pa.int8(), 128), (pa.int8(), 300), (pa.uint8(), 256)])
def test_measure_values_of_a_dictionary_that_is_as_long_as_its_indices_allow(
    type_: pa.DataType, num_values: int
) -> None:
    indices = pa.array([0, 127, None, 100], type_)
    column = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * i for i in range(num_values)]))
    assert measure_values(column).tolist() == [0, 127, 0, 100]
