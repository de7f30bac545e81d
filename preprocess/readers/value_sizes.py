"""The size of each value of an Arrow column, without decoding it.

The problem: many rows, or many messages of a chat, may share the bytes of one value, by a dictionary, by
views or by lists that overlap. A file of a few kilobytes can then be gigabytes of Python objects.

The idea: sizes are summed from the offsets, indices and views alone, also inside of lists and structs.

The cost: about 20 ns for each value and each element of a list.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.recipes.columns import is_text_or_bytes

VIEW_TYPES = (pa.string_view(), pa.binary_view())
ELEMENT_BYTES = 64  # that an element of a list takes besides its values; a message of a chat is one

# Measured at once, because elements such as nulls may take no memory in Arrow. Of a longer list, only the elements
# count; that is more than any record may have.
MAX_ELEMENTS = 1 << 20


def measure_values(column: pa.Array) -> np.ndarray:
    """Return the size of each value in bytes, (R,) int64.

    A null has size 0. A list has ELEMENT_BYTES more for each of its elements. The values of a
    column of numbers, and of types that are no text, all have their mean size.
    """
    types, type_ = pa.types, column.type
    if types.is_dictionary(type_):
        sizes = np.append(measure_values(column.dictionary), 0)  # the last one is for null
        indices = column.indices.cast(pa.int64())  # 127 is the largest index of int8, and 128 may be that of null
        rows: np.ndarray = sizes[indices.fill_null(len(sizes) - 1).to_numpy(zero_copy_only=False)]
        return rows
    if is_text_or_bytes(type_):
        return pc.binary_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    if type_ in VIEW_TYPES:
        is_valid = column.is_valid().to_numpy(zero_copy_only=False)
        return np.where(is_valid, get_views(column)[:, 0], 0).astype(np.int64)
    if types.is_struct(type_):
        total = np.zeros(len(column), np.int64)
        for i in range(type_.num_fields):
            total += measure_values(column.field(i))
        return total
    if is_list(type_):
        return _measure_lists(column)
    return np.full(len(column), column.nbytes // max(len(column), 1), np.int64)


def is_list(type_: pa.DataType) -> bool:
    """Return whether the values of a type are lists."""
    types = pa.types
    is_view = types.is_list_view(type_) or types.is_large_list_view(type_)
    return is_view or types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_)


def _measure_lists(column: pa.Array) -> np.ndarray:
    types, type_ = pa.types, column.type
    if types.is_fixed_size_list(type_):
        starts = (column.offset + np.arange(len(column))) * type_.list_size
        lengths = np.full(len(column), type_.list_size)
    elif types.is_list_view(type_) or types.is_large_list_view(type_):
        starts = column.offsets.to_numpy().astype(np.int64)
        lengths = column.sizes.to_numpy().astype(np.int64)
    else:
        offsets = column.offsets.to_numpy().astype(np.int64)
        starts, lengths = offsets[:-1], np.diff(offsets)
    lengths = np.where(column.is_valid().to_numpy(zero_copy_only=False), lengths, 0)
    used = lengths > 0
    if not used.any():
        return lengths.astype(np.int64)
    first, stop = int(starts[used].min()), int((starts + lengths)[used].max())
    if stop - first > MAX_ELEMENTS:
        if len(column) == 1:
            return lengths * ELEMENT_BYTES
        half = len(column) // 2
        return np.concatenate([_measure_lists(column.slice(0, half)), _measure_lists(column.slice(half))])
    ends = np.concatenate([[0], np.cumsum(measure_values(column.values.slice(first, stop - first)) + ELEMENT_BYTES)])
    starts = np.where(used, starts - first, 0)
    sizes: np.ndarray = ends[starts + lengths] - ends[starts]
    return sizes


def get_views(column: pa.Array) -> np.ndarray:
    """Return size, first bytes, number of the buffer, and offset in it of each of R views, (R, 4) int32."""
    stop = column.offset + len(column)
    return np.frombuffer(column.buffers()[1], "<i4", count=4 * stop).reshape(-1, 4)[column.offset :]
