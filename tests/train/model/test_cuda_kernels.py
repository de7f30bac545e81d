"""The Triton kernel agrees with PyTorch in value and gradient.

Without a GPU, Triton's interpreter runs it on the CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def test_triton_cross_entropy_agrees_with_torch_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="Triton is not installed; torch for CUDA brings it")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.train.model.interpreted_cross_entropy"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
