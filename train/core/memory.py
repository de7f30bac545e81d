"""Memory: how much is available, how much a computation needs, and reuse of freed memory."""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from preprocess.errors import FolioError

CGROUP = Path("/sys/fs/cgroup")  # a container's memory limit, on Linux
PROCESS_STATUS = Path("/proc/self/status")  # of this process, on Linux
# Options of glibc's mallopt and their values: allocate blocks of up to 32 MiB from the heap, and
# keep up to 1 GiB of free heap.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAX_HEAP_BLOCK, KEPT_HEAP = 32 << 20, 1 << 30
# Parts of the messages of torch's RuntimeErrors that mean out of memory.
OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "Storage size calculation overflowed",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def keep_freed_memory() -> None:
    """Make the C library keep the memory that a training step frees, for the next step.

    By default, glibc returns large blocks to the system, which clears each page when it is used
    again: 600 to 1,400 page faults per step of a small model on a CPU, 3 to 5 % of its time. The
    cost is up to 1 GiB of free memory that the process keeps. Has no effect without glibc on Linux.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAX_HEAP_BLOCK)
        mallopt(M_TRIM_THRESHOLD, KEPT_HEAP)


def available_bytes() -> int:
    """Return how many more bytes of host memory this process can allocate.

    It is what the machine has available or, if less, what its container's limit leaves (cgroup v2).
    """
    available = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError, KeyError):  # the files are missing or contain "max": there is no limit
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        available = min(available, limit - used + int(stat["inactive_file"]))  # cached files can be evicted
    return available


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the peak memory used on `device` so far, in bytes, or None if it is not known.

    On a CUDA GPU it is the memory of tensors. On a CPU it is the memory of the process, including
    the libraries and the pages of the shards that it has read. On other devices it is not known.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _peak_process_bytes() if device.type == "cpu" else None


def _peak_process_bytes() -> int | None:
    """Return the peak physical memory of this process in bytes, or None if it is not known."""
    # Not ru_maxrss on Linux: it is at least the memory of the process that started this one.
    with suppress(OSError, IndexError, ValueError):
        return 1024 * int(PROCESS_STATUS.read_text().split("VmHWM:")[1].split()[0])
    try:
        import resource
    except ImportError:  # on Windows
        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0)) or None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS reports bytes, others kilobytes


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` means that the host or a device is out of memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)
    )


@contextmanager
def translate_out_of_memory(message: Callable[[], str]) -> Iterator[None]:
    """Raise FolioError with `message()` in place of an out-of-memory error inside the block."""
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        raise FolioError(message()) from e


class PeakMemory(TorchDispatchMode):
    """A context that measures the memory of the tensors that operations in it return, on any device.

    `peak_bytes` is the largest sum of their storages' sizes at one time; a storage that several
    tensors share counts once. Memory that a kernel allocates and frees internally is not counted.
    torch's own tracker (torch.distributed._tools.mem_tracker) does the same, but is not public.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._held: dict[int, int] = {}  # storage → bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._hold(tensor.untyped_storage())
        return result

    def _hold(self, storage: UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._held:
            self._held[key] = storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, sum(self._held.values()))
            weakref.finalize(storage, self._held.pop, key, None)
