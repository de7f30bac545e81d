"""Measure pushing and pulling a build beside plain copies of its files: in a folder, and to and from S3.

    preprocess import FILE --format nanogpt --tokenizer byte --name two_gb     # any build will do
    python bench/sharing.py shards/two_gb
    python bench/sharing.py shards/two_gb --cases pull cp-sync --repeat 7

`cp-sync` is as durable as `pull`: `cp -r`, and then `sync -f` of the file system. `cp` alone returns while most
of the data is in memory only. None of the plain tools compares anything with a hash. S3 is moto's server on this
machine, one process of Python, so the server takes a large part of both times.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import itertools
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import requests

from bench.lib.measure import ROOT, Job, Measurement, read_once, run_alternately, select_timed
from bench.lib.options import add_run_options, parse_path
from bench.lib.report import describe_machine, format_versions, print_measurements

BUCKET = "bench"
S3_COPY = str(ROOT / "bench/baselines/s3_copy.py")
PLAIN = {"push": "cp-sync", "pull": "cp-sync", "push-s3": "boto3-upload", "pull-s3": "boto3-download"}
CASES = ("cp", "cp-sync", "push", "pull", "boto3-upload", "push-s3", "boto3-download", "pull-s3")
MAX_SLOWDOWN = 1.3
MAX_BYTES = 300e6
# A virtual machine gives memory back to its host some seconds after it is free, and getting it again takes time.
# Without a pause, the time of a run depends on what the previous one has just deleted.
REST_S = 3.0


def make_jobs(python: Path, build: Path, url: str) -> dict[str, Job]:
    """Return the job of each case. `url`: a folder in S3 that has the build."""
    numbers = itertools.count()
    folio = [str(python), "-m", "preprocess"]

    def shell(command: str, *words: str) -> list[str]:
        return ["sh", "-c", command, "sh", *words]

    def pull(address: str) -> Job:
        return lambda folder: ["env", f"FOLIO_SHARDS={folder}", *folio, "pull", address, "--name", "x", "--quiet"]

    def to_bucket(*command: str) -> Job:
        return lambda folder: [*command, str(build), f"s3://{BUCKET}/run-{next(numbers)}"]

    return {
        "cp": lambda folder: ["cp", "-r", str(build), str(folder / "x")],
        "cp-sync": lambda folder: shell('cp -r "$1" "$2" && sync -f "$2"', str(build), str(folder / "x")),
        "push": lambda folder: [*folio, "push", "--quiet", str(build), str(folder / "x")],
        "pull": pull(str(build)),
        "boto3-upload": to_bucket(str(python), S3_COPY),
        "push-s3": to_bucket(*folio, "push", "--quiet"),
        "boto3-download": lambda folder: [str(python), S3_COPY, url, str(folder / "x")],
        "pull-s3": pull(url),
    }


@contextmanager
def run_s3(python: Path, scratch: Path) -> Iterator[str]:
    """Run a server with an empty bucket, which the commands of this process find, and yield its address."""
    import boto3

    scratch.mkdir(parents=True, exist_ok=True)
    log = scratch / "moto.log"
    with open(log, "wb") as file:
        command = [str(python), "-m", "moto.server", "-p", "0"]
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        while not (match := re.search(rb"http://127\.0\.0\.1:\d+", log.read_bytes())):
            if server.poll() is not None:
                sys.exit(f"moto's server ended:\n{log.read_text()}")
        os.environ |= {"AWS_ENDPOINT_URL": match[0].decode(), "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield match[0].decode()
    finally:
        server.terminate()
        server.wait()
        log.unlink()


def empty_bucket(address: str) -> None:
    """Delete the objects of earlier runs, which fill the memory of the server, except the build that is pulled."""
    import boto3

    bucket = boto3.resource("s3").Bucket(BUCKET)
    bucket.objects.filter(Prefix="run-").delete()
    requests.get(address, timeout=30)


def print_verdict(measurements: dict[str, list[Measurement]]) -> None:
    """Print the time of each case of Folio as a multiple of the plain tool's, and what exceeds a limit."""
    seconds = {name: median(m.elapsed_s for m in select_timed(of_case)) for name, of_case in measurements.items()}
    for name, plain in PLAIN.items():
        if name in seconds and plain in seconds:
            ratio, peak_bytes = seconds[name] / seconds[plain], max(m.peak_bytes for m in measurements[name])
            is_met = ratio <= MAX_SLOWDOWN and peak_bytes < MAX_BYTES
            verdict = "" if is_met else f"; the limits {MAX_SLOWDOWN} and {MAX_BYTES / 1e6:.0f} MB are exceeded"
            print(f"{name} ÷ {plain}: {ratio:.2f}, {peak_bytes / 1e6:.0f} MB{verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=parse_path, help="folder of the build")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="(default: all)")
    parser.add_argument("--rest-s", type=float, default=REST_S, help="seconds before each run (default: %(default)s)")
    add_run_options(parser, repeat=5)
    arguments = parser.parse_args()
    paths = [path for path in arguments.build.rglob("*") if path.is_file()]
    print(describe_machine())
    print(format_versions(("folio-lm", "boto3", "s3fs", "moto")))
    print(f"{len(paths)} files, {sum(path.stat().st_size for path in paths):,} bytes\n", flush=True)
    read_once(paths)
    needs_s3 = any("s3" in case or "boto3" in case for case in arguments.cases)
    measurements: dict[str, list[Measurement]] = {}
    url = f"s3://{BUCKET}/build"
    jobs = make_jobs(arguments.folio_python, arguments.build, url)
    jobs = {case: jobs[case] for case in CASES if case in arguments.cases}
    if needs_s3:
        with run_s3(arguments.folio_python, arguments.scratch) as address:
            subprocess.run([str(arguments.folio_python), S3_COPY, str(arguments.build), url], check=True)
            measurements = run_alternately(
                jobs,
                arguments.repeat,
                arguments.scratch,
                read_result=lambda folder: empty_bucket(address),
                rest_s=arguments.rest_s,
            )
    else:
        measurements = run_alternately(jobs, arguments.repeat, arguments.scratch, rest_s=arguments.rest_s)
    print_measurements(measurements)
    print()
    print_verdict(measurements)


if __name__ == "__main__":
    main()
