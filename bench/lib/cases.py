"""Measure the cases of a bench in turn."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from bench.lib.measure import Job, run_alternately
from bench.lib.report import print_machine, print_measurements


def measure_cases(make_job: Callable[[str, argparse.Namespace], Job], arguments: argparse.Namespace) -> None:
    """Make the job of each case in `arguments.cases`, run the jobs in turn, and print a table."""
    jobs = {case: make_job(case, arguments) for case in arguments.cases}
    print_machine(arguments.folio_python)
    print()
    print_measurements(run_alternately(jobs, arguments.repeat, arguments.scratch))
