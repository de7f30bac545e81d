"""What the benches share: fresh processes, their time and memory, builds in folders of their own, tables.

Time is wall clock from before the process starts until it has ended. Memory is the largest sum of unique set sizes (USS) over the
process and its descendants, sampled every 50 ms in a run of its own: looking takes up to a tenth of a machine of two cores. CPU seconds
count descendants too.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
SAMPLE_SECONDS = 0.05
TAIL_CHARACTERS = 3000
NAME = "bench"
LIBRARIES = ("datasets", "datatrove", "gigatoken", "tiktoken", "tokenizers", "numpy", "pyarrow")
FOLIO_LIBRARIES = ("folio-lm", "gigatoken", "tiktoken", "numpy", "pyarrow")
TRAINING_LIBRARIES = ("folio-lm", "torch", "numpy")

Job = Callable[[Path], list[str]]  # given a fresh folder, the command that works in it


@dataclass
class Run:
    """One process, from start to end. `found`: what was read from its folder before that went."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    found: Any = None
    is_watched: bool = False


@dataclass
class _Sampler:
    """Watches a process tree from a thread until `stop`."""

    pid: int
    with_memory: bool
    peak_bytes: int = 0
    cpu_of: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        root = psutil.Process(self.pid)
        while not self._done.wait(SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, self._sample(root))

    def _sample(self, root: psutil.Process) -> int:
        try:
            processes = [root, *root.children(recursive=True)]
        except psutil.Error:
            return 0
        total = 0
        for process in processes:
            try:
                total += process.memory_full_info().uss if self.with_memory else 0
                times = process.cpu_times()
            except psutil.Error:
                continue  # it has ended in between
            self.cpu_of[process.pid] = times.user + times.system
        return total


def measure(command: Sequence[str], log: Path, *, with_memory: bool) -> Run:
    """Runs `command` in the repository's root, its output going to `log`; exits with the log's end where it fails."""
    os.sync()  # what the run before left unwritten is not this one's to write
    with open(log, "wb") as file:
        begin = perf_counter()
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
        sampler = _Sampler(process.pid, with_memory)
        # The process stays a zombie until the sampler lets go of its number.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        seconds = perf_counter() - begin
    sampler.stop()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(
            f"exit status {process.returncode}: {' '.join(command)}\n{log.read_text(errors='replace')[-TAIL_CHARACTERS:]}"
        )
    # wait4 misses descendants that nobody waited for; the sampler misses the last 50 ms of each.
    cpu_seconds = max(usage.ru_utime + usage.ru_stime, sum(sampler.cpu_of.values()))
    return Run(seconds, cpu_seconds, sampler.peak_bytes, is_watched=with_memory)


@contextmanager
def fresh_folder(scratch: Path) -> Iterator[Path]:
    scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=scratch, prefix="run-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def run_job(job: Job, scratch: Path, find: Callable[[Path], Any] | None = None, *, with_memory: bool = True) -> Run:
    """Runs `job` in a fresh folder, lets `find` look at what it left there, deletes it."""
    with fresh_folder(scratch) as folder:
        run = measure(job(folder), folder / "log.txt", with_memory=with_memory)
        run.found = None if find is None else find(folder)
    return run


def alternate(
    jobs: dict[str, Job], repeat: int, scratch: Path, find: Callable[[Path], Any] | None = None
) -> dict[str, list[Run]]:
    """Runs every job once for its memory, then every job in turn, until each has been timed `repeat` times."""
    runs: dict[str, list[Run]] = {name: [] for name in jobs}
    for turn in range(repeat + 1):
        for name, job in jobs.items():
            run = run_job(job, scratch, find, with_memory=turn == 0)
            runs[name].append(run)
            print(f"  {name}: {run.seconds:.2f} s", file=sys.stderr, flush=True)
    return runs


def forget_peak(pid: int) -> None:
    """From now on the peak of that process counts anew, where the system can: on Linux."""
    with suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes(pid: int) -> int | None:
    """The largest resident set of that process since it started, or since its peak was forgotten; None where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None  # a process that has just ended has none


def folio(python: Path, *arguments: str) -> Job:
    """A build with `arguments`, in the fresh folder with all that it puts beside itself."""

    def command(folder: Path) -> list[str]:
        return [
            str(python),
            "-m",
            "preprocess",
            "build",
            *arguments,
            "--name",
            NAME,
            "--output",
            str(folder / NAME),
            "--quiet",
        ]

    return command


def inputs(paths: Sequence[Path]) -> list[str]:
    return [word for path in paths for word in ("--input", str(path))]


def build_log(folder: Path) -> dict[str, Any]:
    """The log of the build that `folio` made in `folder`."""
    return json.loads((folder / NAME / "build_log.json").read_bytes())


def warm(paths: Sequence[Path]) -> None:
    """Reads the files once, so that every run finds them in memory."""
    for path in paths:
        with open(path, "rb") as file:
            while file.read(16 << 20):
                pass


def absolute(path: str) -> Path:
    """Links stay as they are: a virtual environment's Python is one. Commands run elsewhere than the bench does."""
    return Path(path).absolute()


def positive(text: str) -> int:
    """For argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, wanted a whole number, 1 or more")
    return int(text)


def add_options(parser: argparse.ArgumentParser, *, repeat: int) -> None:
    """The options of every bench that runs jobs."""
    parser.add_argument(
        "--repeat", type=positive, default=repeat, help=f"runs of each job, interleaved (default: {repeat})"
    )
    parser.add_argument(
        "--folio-python", type=absolute, default=ROOT / ".venv/bin/python", help="the Python that has Folio"
    )
    add_scratch(parser)


def add_scratch(parser: argparse.ArgumentParser) -> None:
    scratch = Path(tempfile.gettempdir()) / "folio-bench"
    parser.add_argument(
        "--scratch", type=absolute, default=scratch, help=f"folder for what is made and deleted (default: {scratch})"
    )


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def print_runs(runs: dict[str, list[Run]], *, against: str | None = None) -> None:
    """A row for each job; with `against`, how many times as long as that one it took."""
    header = [
        "job",
        "seconds of each run",
        "median",
        "CPU s",
        "cores",
        "peak MB",
        *([f"÷ {against}"] if against else []),
    ]
    rows = [header]
    for name, of_job in runs.items():
        timed = [run for run in of_job if not run.is_watched] or of_job
        seconds = median([run.seconds for run in timed])
        row = [name, " ".join(f"{run.seconds:.2f}" for run in timed), f"{seconds:.2f}"]
        cpu_seconds = median([run.cpu_seconds for run in timed])
        row += [
            f"{cpu_seconds:.2f}",
            f"{cpu_seconds / seconds:.2f}",
            f"{max(run.peak_bytes for run in of_job) / 1e6:,.0f}",
        ]
        if against:
            row.append(f"{seconds / median([run.seconds for run in runs[against] if not run.is_watched]):.2f}")
        rows.append(row)
    print_table(rows)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Markdown: the first row is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        print(f"| {' | '.join(cells)} |")
        if number == 0:
            print(f"|{'|'.join('-' * (w + 1) + ('-' if i < 2 else ':') for i, w in enumerate(widths))}|")


def print_machine(folio_python: Path) -> None:
    """Where and when, and with what."""
    print(describe_machine())
    print("peers: " + versions(LIBRARIES))
    program = "import sys; sys.path.insert(0, sys.argv[1]); from bench.lib import measure; print(measure.versions(measure.FOLIO_LIBRARIES))"
    ask = [str(folio_python), "-c", program, str(ROOT)]
    print("Folio: " + subprocess.run(ask, stdout=subprocess.PIPE, text=True, check=True).stdout.strip(), flush=True)


def describe_machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    return f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}, {_today()}"


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def versions(libraries: Sequence[str]) -> str:
    return ", ".join(f"{name} {_version(name)}" for name in libraries)


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "missing"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
