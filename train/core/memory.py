"""How much memory there is, how much of it some computation takes at its peak, and that a step's is kept for the next."""

from __future__ import annotations

import ctypes
import sys
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CGROUP = Path("/sys/fs/cgroup")  # where Linux tells a container its limit


# glibc's numbers of what mallopt sets, and what to: blocks up to this come from the heap, of which this much stays when it is free.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_IN_HEAP, KEPT_IN_HEAP = 32 << 20, 1 << 30


def keep_freed_memory() -> None:
    """Have the C library keep what a step frees for the next one; elsewhere than on Linux with glibc, nothing is done.

    Otherwise it gives large blocks back, and the system hands them out again page by page, cleared: 600 to 1,400 page faults a step of
    a small model on a CPU, 3 to 5 % of its time. Up to KEPT_IN_HEAP more stays with the process; blocks above LARGEST_IN_HEAP, the most
    that glibc allows, go back as before.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_IN_HEAP)
        mallopt(M_TRIM_THRESHOLD, KEPT_IN_HEAP)


def available_bytes() -> int:
    """What this machine, or the container that this process runs in, can still give to it."""
    available = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError, KeyError):  # no such files, or "max": no limit
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        told = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        available = min(available, limit - used + int(told["inactive_file"]))  # files that were read give way
    return available


class PeakMemory(TorchDispatchMode):
    """A context that counts the bytes of the tensors made in it, on whatever device: `peak_bytes` at once at most.

    What kernels take and give back within themselves is not seen. The idea is that of torch's own memory tracker
    (torch.distributed._tools.mem_tracker), which is not public.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._held: dict[int, int] = {}  # storage → bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._hold(tensor.untyped_storage())
        return made

    def _hold(self, storage: UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._held:
            self._held[key] = storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, sum(self._held.values()))
            weakref.finalize(storage, self._held.pop, key, None)
