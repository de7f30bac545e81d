"""Reading and writing safetensors files. Reading such a file executes no code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from preprocess.errors import FolioError, shorten
from preprocess.shards.files import open_regular_file

MAX_HEADER_BYTES = 8 << 20  # names, shapes and metadata of the tensors, which take 15 times as much memory


class TensorFileError(FolioError):
    """Raised for a file that is not a complete safetensors file."""


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the memory-mapped CPU tensor of every tensor in the file `path`.

    Raises TensorFileError if the file is damaged, and OSError if it cannot be opened.
    """
    with _open(path) as file:
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            yield name, file.get_tensor(name)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts that `write_tensors` stored as the metadata of the file `path`.

    Raises TensorFileError if the file is damaged, and OSError if it cannot be opened.
    """
    with _open(path) as file:
        return file.metadata() or {}


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Open the file `path`. Raises TensorFileError if it is damaged, also in the block."""
    with open_regular_file(path) as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        size_bytes = os.fstat(file.fileno()).st_size
    if MAX_HEADER_BYTES < header_bytes <= size_bytes:  # the library says what is wrong with a size beyond the end
        raise TensorFileError(
            f"{path} has a header of {header_bytes:,} bytes, expected at most {MAX_HEADER_BYTES:,}; "
            "is it the right file?"
        )
    try:
        with safe_open(path, "pt") as opened:
            yield opened
    except SafetensorError as e:
        raise TensorFileError(f"{path} is not a safetensors file ({shorten(str(e))})") from e


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write `tensors` to `path` and flush it to the disk. Raises OSError or SafetensorError."""
    save_file(tensors, path, metadata=metadata)
    with open(path, "r+b") as file:  # Windows flushes only files that are open for writing
        os.fsync(file.fileno())
