"""Ctrl-C and SIGTERM while a command imports its libraries."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.helpers.runs import make_environment

# A library that gets a signal while it is imported, and raises another exception because of it.
TORCH = """
import os, signal
try:
    os.kill(os.getpid(), signal.{name})
    for _ in range(1000):
        pass
except BaseException as e:
    raise ImportError("cannot load module more than once per process") from e
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("start", [["train/sample.py"], ["-m", "train", "evaluate"]], ids=str)
def test_signal_during_an_import_ends_the_process_without_a_traceback(
    tmp_path: Path, start: list[str], signum: signal.Signals
) -> None:
    (tmp_path / "torch.py").write_text(TORCH.format(name=signum.name))
    environment = make_environment() | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, *start, "nowhere"], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + signum, "", "importing PyTorch\n")
