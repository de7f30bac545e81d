"""The examples run on a build as they stand, learn, and are what docs/own_loop.md shows."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from train_helpers import environment, make_build

EXAMPLES = ROOT / "examples"


def run_example(name: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=200)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def assert_falls(losses: list[float]) -> None:
    """The sentence of the build can be learnt by heart."""
    assert len(losses) >= 5 and losses[-1] < losses[0] / 2, losses


def test_the_plain_loop_learns(tmp_path: Path) -> None:
    printed = run_example("plain_loop.py", make_build(tmp_path / "tiny"))
    assert_falls([float(loss) for loss in re.findall(r"^step \d+: loss ([\d.]+)$", printed, re.MULTILINE)])


def test_the_plain_loop_stays_short() -> None:
    lines = (EXAMPLES / "plain_loop.py").read_text().splitlines()
    assert sum(bool(line.strip()) and not line.startswith('"""') for line in lines) <= 30


@pytest.mark.skipif(not importlib.util.find_spec("accelerate"), reason="Hugging Face's Trainer needs accelerate, which is not installed")
def test_hugging_face_trainer_learns(tmp_path: Path) -> None:
    printed = run_example("hf_trainer.py", make_build(tmp_path / "tiny"), tmp_path / "out")
    assert_falls([float(loss) for loss in re.findall(r"'loss': '?([\d.]+)", printed)])


def test_the_documentation_shows_the_examples() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/own_loop.md").read_text(encoding="utf-8"), re.DOTALL)
    examples = [path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")]
    assert len(blocks) == len(examples)
    for example in examples:
        assert any(dedented(block) in dedented(example) for block in blocks), "docs/own_loop.md shows what an example no longer holds"


def dedented(code: str) -> str:
    return "\n".join(line.strip() for line in code.splitlines())
