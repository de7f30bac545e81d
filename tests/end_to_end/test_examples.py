"""The examples run on a build as they stand, learn, and are what docs/own_loop.md shows."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.helpers.runs import SENTENCE, make_environment, make_build

EXAMPLES = ROOT / "examples"


def run_example(name: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, env=make_environment(), timeout=200)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def assert_falls(rejects: list[float]) -> None:
    """The sentence of the build can be learnt by heart."""
    assert len(rejects) >= 5 and rejects[-1] < rejects[0] / 2, rejects


def test_the_plain_loop_learns(tmp_path: Path) -> None:
    printed = run_example("plain_loop.py", make_build(tmp_path / "tiny"))
    assert_falls([float(loss) for loss in re.findall(r"^step \d+: loss ([\d.]+)$", printed, re.MULTILINE)])


@pytest.mark.parametrize("name", ["plain_loop.py", "stream_loop.py", "hf_trainer.py"])
def test_a_mistake_is_no_traceback(tmp_path: Path, name: str) -> None:
    if name == "hf_trainer.py":
        pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
    out_dir = [str(tmp_path / "out")] if name == "hf_trainer.py" else []
    short = make_build(tmp_path / "short", train_repeats=1)
    for arguments, status, told in (
        (["--help"], 0, "usage: "),
        ([], 2, "error: the following arguments are required: "),
        (["nothing.toml" if name == "stream_loop.py" else "nothing", *out_dir], 1, "error: no "),
        *([([str(short)], 1, "or less, or build from more text")] if name == "plain_loop.py" else []),
    ):
        ran = subprocess.run(
            [sys.executable, EXAMPLES / name, *arguments],
            capture_output=True,
            text=True,
            env=make_environment(),
            cwd=tmp_path,
            timeout=200,
        )
        assert ran.returncode == status and told in ran.stdout + ran.stderr, ran.stderr
        assert (
            "Traceback" not in ran.stderr
            and "--block_size" not in ran.stderr
            and (status != 1 or ran.stderr.count("\n") == 1)
        )


def test_the_plain_loop_stays_short() -> None:
    lines = (EXAMPLES / "plain_loop.py").read_text().splitlines()
    assert sum(bool(line.strip()) and not line.startswith('"""') for line in lines) <= 36


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Of lines which begin with their numbers."""
    (tmp_path / "input.txt").write_text("".join(f"{n:03} {SENTENCE}" for n in range(300)))
    settings = 'inputs = ["input.txt"]\ndocument = "line"\ntokenizer = "byte"\nsplit = "threshold"\ndedup = false\n'
    (tmp_path / "mine.toml").write_text(settings)
    return tmp_path / "mine.toml"


def test_the_loop_over_a_stream_learns(recipe: Path) -> None:
    printed = run_example("stream_loop.py", recipe)
    assert_falls([float(loss) for loss in re.findall(r"^step \d+: loss ([\d.]+)$", printed, re.MULTILINE)])


WORKERS = """
import sys
from torch.utils.data import DataLoader
from stream_loop import Blocks
from preprocess.stream import TokenStream

if __name__ == "__main__":
    settings = {"block_size": 47, "stream_buffer": 9, "seed": 3}  # a block is a line and its end-of-text
    alone = sorted(block[:47].tolist() for block in TokenStream(sys.argv[1], **settings))
    assert len(alone) > 200
    for method in ("fork", "spawn"):
        loader = DataLoader(Blocks(sys.argv[1], **settings), 7, num_workers=2, multiprocessing_context=method, persistent_workers=True)
        for _ in range(2):
            assert sorted(row for x, _ in loader for row in x.tolist()) == alone, method
"""


def test_workers_of_the_example_read_all_of_it_once(recipe: Path) -> None:
    (recipe.parent / "workers.py").write_text(WORKERS)
    env = make_environment() | {"PYTHONPATH": f"{EXAMPLES}:{ROOT}"}
    ran = subprocess.run(
        [sys.executable, recipe.parent / "workers.py", recipe], capture_output=True, text=True, env=env, timeout=200
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_loop_over_a_stream_resumes(recipe: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int) -> None:
    stateful_dataloader = pytest.importorskip("torchdata.stateful_dataloader")
    monkeypatch.syspath_prepend(EXAMPLES)
    blocks_of = importlib.import_module("stream_loop").Blocks

    def make() -> Any:
        return stateful_dataloader.StatefulDataLoader(
            blocks_of(str(recipe), block_size=31, stream_buffer=9), 5, num_workers=num_workers
        )

    wanted = [x.tolist() for x, _ in make()]
    stopped, resumed = make(), make()
    iterator = iter(stopped)
    assert [next(iterator)[0].tolist() for _ in range(11)] == wanted[:11]
    resumed.load_state_dict(stopped.state_dict())
    assert [x.tolist() for x, _ in resumed] == wanted[11:] != []


@pytest.mark.skipif(
    not importlib.util.find_spec("accelerate"), reason="Hugging Face's Trainer needs accelerate, which is not installed"
)
def test_hugging_face_trainer_learns(tmp_path: Path) -> None:
    printed = run_example("hf_trainer.py", make_build(tmp_path / "tiny"), tmp_path / "out")
    assert_falls([float(loss) for loss in re.findall(r"'loss': '?([\d.]+)", printed)])


def test_the_documentation_shows_the_examples() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/own_loop.md").read_text(encoding="utf-8"), re.DOTALL)
    examples = [path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")]
    assert len(blocks) == len(examples)
    for example in examples:
        assert any(dedented(block) in dedented(example) for block in blocks), (
            "docs/own_loop.md shows what an example no longer holds"
        )


def dedented(code: str) -> str:
    return "\n".join(line.strip() for line in code.splitlines())
