"""Print what was measured: Markdown tables, and the machine and library versions they belong to."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import psutil

from bench.lib.measure import ROOT, Measurement, select_timed

BASELINE_LIBRARIES = ("datasets", "datatrove", "gigatoken", "tiktoken", "tokenizers", "numpy", "pyarrow")
FOLIO_LIBRARIES = ("folio-lm", "gigatoken", "tiktoken", "numpy", "pyarrow")
TRAINING_LIBRARIES = ("folio-lm", "torch", "numpy")
NUM_LEFT_ALIGNED = 2  # columns


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table whose head is the first row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(width) if column < NUM_LEFT_ALIGNED else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print(f"| {' | '.join(cells)} |")
        if number == 0:
            rules = ["-" * (width + 1) + "-:"[column >= NUM_LEFT_ALIGNED] for column, width in enumerate(widths)]
            print(f"|{'|'.join(rules)}|")


def print_measurements(measurements: dict[str, list[Measurement]], *, relative_to: str | None = None) -> None:
    """Print a row per job: times, CPU time and peak memory.

    With `relative_to`, the last column is the median time as a multiple of that job's.
    """
    rows = [["job", "seconds of each run", "median", "CPU s", "cores", "peak MB"]]
    medians = {name: median(m.elapsed_s for m in select_timed(of_job)) for name, of_job in measurements.items()}
    for name, of_job in measurements.items():
        timed = select_timed(of_job)
        cpu_s = median(measurement.cpu_s for measurement in timed)
        rows.append(
            [
                name,
                " ".join(f"{measurement.elapsed_s:.2f}" for measurement in timed),
                f"{medians[name]:.2f}",
                f"{cpu_s:.2f}",
                f"{cpu_s / medians[name]:.2f}",
                f"{max(measurement.peak_bytes for measurement in of_job) / 1e6:,.0f}",
            ]
        )
    if relative_to is not None:
        rows[0].append(f"÷ {relative_to}")
        for row in rows[1:]:
            row.append(f"{medians[row[0]] / medians[relative_to]:.2f}")
    print_table(rows)


def print_machine(folio_python: Path) -> None:
    """Print the machine, the date, and the libraries of this Python and of the one that has Folio."""
    print(describe_machine())
    print("baselines: " + format_versions(BASELINE_LIBRARIES))
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from bench.lib import report; "
        "print(report.format_versions(report.FOLIO_LIBRARIES))"
    )
    command = [str(folio_python), "-c", program, str(ROOT)]
    folio_versions = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    print("Folio: " + folio_versions, flush=True)


def describe_machine() -> str:
    """Return the processor, cores, memory, system, Python version and date on one line."""
    memory_gib = psutil.virtual_memory().total / 2**30
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"{_processor_name()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, {platform.system()}, "
        f"Python {platform.python_version()}, {today}"
    )


def format_versions(libraries: Sequence[str]) -> str:
    """Return each library with its installed version."""
    return ", ".join(f"{name} {_installed_version(name)}" for name in libraries)


def _installed_version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "missing"


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
