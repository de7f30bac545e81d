"""The tensors of a checkpoint, which can be divided by rows among several files.

In a sharded checkpoint (`parallel = "fsdp"`), every process writes a file with the rows that it
holds, its part. The file's metadata has the number of the first row of each tensor. Parts can be
read by any number of processes, each of which reads the rows that it needs.

The files have the format of torch.distributed.checkpoint's HuggingFaceStorageWriter, so its reader
reads them too. Folio does not use `torch.distributed.checkpoint` itself: it exchanges its plans
between the processes as pickles, and it has no checksums.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from preprocess.shards.files import canonical_json, parse_json
from train.core.sharding import first_row, is_sharded, local_rows
from train.core.tensors import TensorFileError, read_metadata, read_tensors, write_tensors

# Keys of the metadata, from torch/distributed/checkpoint/_hf_utils.py.
OFFSETS, SAVED_OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"
METADATA = {"DCP_VERSION": "1.0", "format": "pt"}


@dataclass(frozen=True)
class StoredTensor:
    """A memory-mapped tensor of a checkpoint: its consecutive rows in one or several parts."""

    parts: tuple[Tensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        first, *others = self.parts
        return (len(first) + sum(map(len, others)), *first.shape[1:]) if others else tuple(first.shape)

    def whole(self) -> Tensor:
        """Return the tensor: memory-mapped if it has one part, else a copy."""
        return self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts)

    def copy_to(self, target: Tensor) -> None:
        """Copy the tensor to the first rows of `target`; if that is sharded, to those that this process holds."""
        if target.dim() == 0:
            target.copy_(self.parts[0])
            return
        rows, offset, begin = local_rows(target), first_row(target), 0
        for part in self.parts:
            low, high = max(offset, begin), min(offset + len(rows), begin + len(part))
            if low < high:
                rows[low - offset : high - offset].copy_(part[low - begin : high - begin])
            begin += len(part)


def part_files(name: str, num_parts: int) -> list[str]:
    """Return the names of the files of a checkpoint with `num_parts` parts: `name` itself if it has one."""
    stem, suffix = name.split(".")
    numbers = range(1, num_parts + 1)
    return [name] if num_parts == 1 else [f"{stem}-{i:05d}-of-{num_parts:05d}.{suffix}" for i in numbers]


def write_part(path: Path, tensors: Mapping[str, Tensor], *, is_main: bool) -> None:
    """Write this process's part of `tensors` to `path`, and flush it to the disk.

    Tensors that are not sharded are written by the main process. Raises OSError or SafetensorError.
    """
    held = {name: t for name, t in tensors.items() if (len(local_rows(t)) if is_sharded(t) else is_main)}
    offsets = {name: {SAVED_OFFSETS: _offsets(tensor)} for name, tensor in held.items()}
    metadata = METADATA | {OFFSETS: canonical_json(offsets).decode()}
    write_tensors(path, {name: local_rows(tensor).contiguous() for name, tensor in held.items()}, metadata)


def _offsets(tensor: Tensor) -> list[int]:
    """Return the index in the whole tensor of the first element that this process holds."""
    return [first_row(tensor), *[0] * (tensor.dim() - 1)] if tensor.dim() else []


def map_tensors(paths: Sequence[Path]) -> dict[str, StoredTensor]:
    """Return the tensors of the files `paths`, memory-mapped: those of one file, or of all parts.

    Raises TensorFileError if a file is damaged or if rows are missing, and OSError if one cannot be
    opened.
    """
    if len(paths) == 1:
        return {name: StoredTensor((tensor,)) for name, tensor in read_tensors(paths[0])}
    found: dict[str, list[tuple[int, Tensor]]] = {}
    for path in paths:
        offsets = _read_offsets(path)
        for name, tensor in read_tensors(path):
            found.setdefault(name, []).append((_first_row(path, name, offsets, tensor), tensor))
    return {name: _join(name, parts, paths[0]) for name, parts in found.items()}


def _read_offsets(path: Path) -> Any:
    try:
        return parse_json(read_metadata(path).get(OFFSETS, "").encode())
    except ValueError as e:
        raise TensorFileError(f"{path} does not say which rows it has ({e!s:.80})") from e


def _first_row(path: Path, name: str, offsets: Any, tensor: Tensor) -> int:
    entry = offsets.get(name) if isinstance(offsets, dict) else None
    numbers: Any = entry.get(SAVED_OFFSETS) if isinstance(entry, dict) else None
    is_valid = isinstance(numbers, list) and len(numbers) == tensor.dim() and all(type(n) is int for n in numbers)
    if not is_valid or any(numbers[1:]):
        raise TensorFileError(f"{path} does not say which rows of {name:.80} it has, but {entry!s:.40}")
    return numbers[0] if numbers else 0


def _join(name: str, found: Iterable[tuple[int, Tensor]], path: Path) -> StoredTensor:
    """Return the tensor of the parts `found`, pairs of the first row and the rows. `path` is for messages."""
    ordered = sorted(found, key=lambda pair: (pair[0], pair[1].numel()))
    parts = tuple(part for _, part in ordered)
    kinds = {(part.dtype, part.dim(), part.shape[1:]) for part in parts}
    if len(kinds) > 1 or (len(parts) > 1 and parts[0].dim() == 0):
        raise TensorFileError(f"the parts of {name:.80} in {path.parent} have different dtypes or shapes")
    begin = 0
    for row, part in ordered:
        if row != begin:
            raise TensorFileError(f"a part of {name:.80} in {path.parent} begins at row {row:,}, expected {begin:,}")
        begin += len(part) if part.dim() else 0
    return StoredTensor(parts)
