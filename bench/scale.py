"""Measure how builds grow: seconds of each phase, CPU seconds and peak memory for texts of 10 MB to 4 GB.

A text consists of files of at most 400 MB of long documents. The table and the plot show what a
larger text costs. Memory must not grow with the text, and seconds per MB must fall to a constant.

    python bench/scale.py --mirror CORPORA --plot scale.svg
    python bench/scale.py --mirror CORPORA --mb 10 40 100 400 1200 4000 --repeat 1
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from statistics import median

from bench.lib.folio_build import build_job, input_options, read_build_log
from bench.lib.measure import Measurement, read_once, run_alternately, select_timed
from bench.lib.options import add_run_options, add_text_options, parse_path, parse_positive
from bench.lib.report import print_machine, print_table
from bench.lib.texts import make_natural_files, make_text_folder

MAX_FILE_MB = 400
PHASES = ("plan", "prepare", "dedup_and_split", "shard_layout", "write_shards")
START = "start and publish"  # what no phase measures: imports, metadata, the last flush


def read_phases(folder: Path) -> dict[str, float]:
    """Return the seconds of each phase of the build that a job made in `folder`."""
    phases: dict[str, float] = read_build_log(folder)["elapsed_s_by_phase"]
    return phases


def list_phases(measurement: Measurement) -> dict[str, float]:
    """Return the seconds of each phase, with the rest of the measured time as START."""
    phases = {name: measurement.result.get(name, 0.0) for name in PHASES}
    return {**phases, START: measurement.elapsed_s - sum(phases.values())}


def print_growth(measurements: dict[int, list[Measurement]]) -> None:
    """Print a row per size of text, in MB."""
    rows = [["MB", "seconds", "MB/s", "CPU s", "CPU ms per MB", *PHASES, START, "peak MB"]]
    for mb, of_size in measurements.items():
        timed = select_timed(of_size)
        seconds, cpu_s = median(m.elapsed_s for m in timed), median(m.cpu_s for m in timed)
        phases = [median(list_phases(m)[name] for m in timed) for name in (*PHASES, START)]
        peak = f"{max(m.peak_bytes for m in of_size) / 1e6:,.0f}"
        rows.append(
            [
                f"{mb:,}",
                f"{seconds:.2f}",
                f"{mb / seconds:.0f}",
                f"{cpu_s:.2f}",
                f"{1000 * cpu_s / mb:.1f}",
                *(f"{value:.2f}" for value in phases),
                peak,
            ]
        )
    print_table(rows)


def plot_growth(measurements: dict[int, list[Measurement]], path: Path) -> None:
    """Draw seconds of each phase, and the peak memory, against the size of the text, on logarithmic axes."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.fonttype"] = "none"  # letters stay text: a tenth of the size
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    times, memory = figure.subplots(1, 2)
    sizes = list(measurements)
    timed = [select_timed(of_size) for of_size in measurements.values()]
    times.plot(sizes, [median(m.elapsed_s for m in runs) for runs in timed], "k-o", label="whole build")
    for name in (*PHASES, START):
        times.plot(sizes, [median(list_phases(m)[name] for m in runs) for runs in timed], "-o", label=name)
    times.set(xscale="log", yscale="log", xlabel="MB of text", ylabel="seconds", ylim=(0.01, None))
    figure.legend(loc="outside lower center", ncols=4)
    peaks = [max(m.peak_bytes for m in of_size) / 1e6 for of_size in measurements.values()]
    memory.plot(sizes, peaks, "k-o")
    memory.set(xscale="log", xlabel="MB of text", ylabel="peak MB of all processes", ylim=(0, None))
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--mb", type=parse_positive, nargs="+", default=[10, 40, 100, 400, 1200], help="(default: 10 40 100 400 1200)"
    )
    parser.add_argument("--workers", type=int, default=2, help="(default: 2)")
    parser.add_argument("--plot", type=parse_path, help="write a plot to this .svg or .png file")
    add_text_options(parser)
    add_run_options(parser, repeat=1)
    arguments = parser.parse_args()
    folder = make_text_folder(arguments)
    jobs = {}
    print_machine(arguments.folio_python)
    for mb in sorted(arguments.mb):
        file_mb = min(mb, MAX_FILE_MB)
        files = make_natural_files(folder, arguments.mirror, -(-mb // file_mb), file_mb)
        read_once(files)
        options = ("--tokenizer", "gpt2", "--workers", str(arguments.workers))
        jobs[str(mb)] = build_job(arguments.folio_python, *input_options(files), *options)
    measured = run_alternately(jobs, arguments.repeat, arguments.scratch, read_phases)
    measurements = {int(mb): of_size for mb, of_size in measured.items()}
    print_growth(measurements)
    if arguments.plot is not None:
        plot_growth(measurements, arguments.plot)


if __name__ == "__main__":
    main()
