"""What the tests of several trackers share."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.runs import make_command, make_environment, read_losses, read_metric_rows

# Settings of a run that is stopped before it is finished.
LONG_RUN: dict[str, Any] = {"max_steps": 100_000, "checkpoint_interval": 10, "eval_interval": 10}
# What a tracker is sent about a run, for tests without one.
RUN_INFO: dict[str, Any] = {"config": {}, "build_id": "", "build_name": ""}
Values = dict[str, list[tuple[int, float]]]  # steps and values by metric


def needs(*modules: str) -> pytest.MarkDecorator:
    """Skip a test if one of the modules is not installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}; run by `make test-slow`")


def read_metrics(out_dir: Path) -> Values:
    """Return the values of metrics.jsonl except null."""
    values: Values = {}
    for row in read_metric_rows(out_dir):
        for key, value in row.items():
            if key != "step" and value is not None:
                values.setdefault(key, []).append((row["step"], value))
    return values


def stop_at(config: Path, prefix: str, signum: signal.Signals, **variables: str) -> int:
    """Run train.py, send a signal at the first line with the prefix, and return the exit status."""
    process = subprocess.Popen(
        make_command("train.py", config), stdout=subprocess.PIPE, text=True, env=make_environment() | variables
    )
    assert process.stdout
    while not process.stdout.readline().startswith(prefix):
        assert process.poll() is None
    process.send_signal(signum)
    process.communicate(timeout=150)
    return process.returncode


def assert_untouched(result: subprocess.CompletedProcess[str], out_dir: Path, untracked: Path, *warnings: str) -> None:
    """Check that a run has the losses of one without trackers, and printed just the warnings."""
    assert result.returncode == 0, result.stderr
    assert read_losses(out_dir) == read_losses(untracked)
    lines = result.stderr.splitlines()
    assert len(lines) == len(warnings), result.stderr
    for warning in warnings:
        assert any(line.startswith("warning: ") and warning in line for line in lines), result.stderr


def assert_same_values(values: Values, out_dir: Path) -> None:
    """Check that a tracker has each value of metrics.jsonl once, in order."""
    expected = read_metrics(out_dir)
    assert {key: [step for step, _ in pairs] for key, pairs in values.items()} == {
        key: [step for step, _ in pairs] for key, pairs in expected.items()
    }
    for key, pairs in expected.items():
        assert [value for _, value in values[key]] == pytest.approx([value for _, value in pairs], rel=1e-6), key
