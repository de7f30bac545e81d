"""Child processes with limits of memory and time, for work on files that can crash or fill a process.

A child is a new interpreter, because a fork of this process could inherit a lock that another thread
holds. Its start decides how long a short build takes, so this module imports nothing large.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import preprocess
from preprocess.errors import FolioError, shorten


def start_child(code: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start an interpreter that runs `code`, with pipes for stdin, stdout and stderr.

    `code` must first set `sys.path` to `sys.argv[1:]`, the paths of this process. `environment` has
    variables that are added to those of this process.
    """
    root = Path(preprocess.__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code, str(root), *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )


def explain_failed_start(work: str, errors: bytes) -> FolioError:
    """Return the error for a child that has ended at once. `work` is its purpose, `errors` what it wrote to stderr."""
    last_line = errors.decode(errors="replace").strip().rpartition("\n")[2]
    return FolioError(f"the process that {work} cannot start: {shorten(last_line)}")


def explain_end(status: int, max_cpu_s: int, max_wait_s: int) -> str | None:
    """Return "takes more than N s" if a child has ended at a limit of its time, otherwise None."""
    name = name_status(status)
    if name in ("SIGXCPU", "SIGALRM"):
        return f"takes more than {max_cpu_s if name == 'SIGXCPU' else max_wait_s} s"
    return None


def name_status(status: int) -> str:
    """Return for example "SIGSEGV" or "status 1" for the return code of a child."""
    return signal.Signals(-status).name if status < 0 else f"status {status}"


def limit_resources(max_memory_bytes: int, max_cpu_s: int, max_wait_s: int) -> None:
    """Limit the memory of this process, and its time from now on. Windows has no such limits."""
    with suppress(ImportError):
        import resource

        signal.alarm(max_wait_s)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        max_cpu_s += int(usage.ru_utime + usage.ru_stime)
        limits = ((resource.RLIMIT_DATA, max_memory_bytes), (resource.RLIMIT_CPU, max_cpu_s), (resource.RLIMIT_CORE, 0))
        for kind, value in limits:
            hard_limit = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (value if hard_limit < 0 else min(value, hard_limit), hard_limit))
