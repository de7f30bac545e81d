"""Run a trainer as a process, and read from its output when training starts and how much CPU time it takes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import psutil

from bench.lib.measure import LOG_TAIL_CHARACTERS, ROOT, copy_environment, read_peak_memory, reset_peak_memory
from preprocess.errors import FolioError

# Lines that train.py prints: the last one before the first evaluation; the evaluation before the
# first step; the loss of a step; and the time of compilation.
START_LINE = re.compile(r" tokens per step, on ")
EVALUATION_LINE, STEP_LINE = re.compile(r"^step 0/\d+  val loss "), re.compile(r"^step \d+/\d+  loss ")
COMPILATION_LINE = re.compile(r"^preflight: compiled in ([\d.]+) s")


@dataclass(frozen=True, kw_only=True)
class FinishedProcess:
    start_up_s: float | None  # until it printed START_LINE; None if it did not
    compilation_s: float  # as it printed in COMPILATION_LINE
    peak_bytes: int | None  # from START_LINE on
    cpu_s: float | None  # from EVALUATION_LINE to the last STEP_LINE; None if they were not printed


def run_trainer(command: list[str], log: Path, *, environment: Mapping[str, str] | None = None) -> FinishedProcess:
    """Run `command` in the root of the repository, with its output in `log`. Raises FolioError if it fails.

    `environment`: variables to set in addition. If this process is interrupted, the trainer is killed.
    """
    variables = {**copy_environment(), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(environment or {})}
    begin = perf_counter()
    start_up_s, compilation_s, peak_bytes = None, 0.0, None
    cpu_begin_s, cpu_s = 0.0, None
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(log, "w") as file,
        subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if start_up_s is None and START_LINE.search(line):
                    start_up_s = perf_counter() - begin
                    reset_peak_memory(process.pid)
                elif start_up_s is not None:
                    peak_bytes = read_peak_memory(process.pid) or peak_bytes
                if EVALUATION_LINE.match(line):
                    cpu_begin_s = _read_cpu_s(process.pid)
                elif cpu_begin_s and STEP_LINE.match(line):
                    cpu_s = _read_cpu_s(process.pid) - cpu_begin_s
                if match := COMPILATION_LINE.match(line):
                    compilation_s = float(match[1])
                file.write(line)
        except BaseException:
            process.kill()  # what it would still save is deleted anyway
            raise
    if process.returncode:
        raise FolioError(f"{' '.join(command)} failed with exit status {process.returncode}: {_read_error(log)}")
    return FinishedProcess(start_up_s=start_up_s, compilation_s=compilation_s, peak_bytes=peak_bytes, cpu_s=cpu_s)


def _read_cpu_s(pid: int) -> float:
    """Return the CPU time of a process until now."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def _read_error(log: Path) -> str:
    """Return the error line that a trainer printed last, or the end of the log if there is none."""
    text = log.read_text(errors="replace")
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    return errors[-1] if errors else text[-LOG_TAIL_CHARACTERS:]
