"""The examples run on a build, learn, and are what docs/own_loop.md shows."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.helpers.runs import SENTENCE, make_build, make_environment

EXAMPLES = ROOT / "examples"
OF_EXPORTS = ("lora.py", "trl_chat.py")  # examples that read an exported model instead of a build


def run_example(name: str, *arguments: object) -> str:
    """Return what an example prints."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=make_environment(), timeout=200)
    assert result.returncode == 0, result.stderr
    return result.stdout


def find_losses(output: str) -> list[float]:
    """Return the losses of the lines `step N: loss X`."""
    return [float(loss) for loss in re.findall(r"^step \d+: loss ([\d.]+)$", output, re.MULTILINE)]


def assert_learned(losses: list[float]) -> None:
    """Check that the loss has fallen by half: every document is the same sentence."""
    assert len(losses) >= 5 and losses[-1] < losses[0] / 2, losses


def test_plain_loop_learns(tmp_path: Path) -> None:
    assert_learned(find_losses(run_example("plain_loop.py", make_build(tmp_path / "tiny"))))


@pytest.mark.parametrize("name", ["plain_loop.py", "stream_loop.py", "hf_trainer.py"])
def test_invalid_arguments_are_one_line(tmp_path: Path, name: str) -> None:
    if name == "hf_trainer.py":
        pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
    out_dir = [str(tmp_path / "out")] if name == "hf_trainer.py" else []
    short = make_build(tmp_path / "short", train_repeats=1)
    for arguments, status, message in (
        (["--help"], 0, "usage: "),
        ([], 2, "error: the following arguments are required: "),
        (["nothing.toml" if name == "stream_loop.py" else "nothing", *out_dir], 1, "error: no "),
        *([([str(short)], 1, "or less, or build from more text")] if name == "plain_loop.py" else []),
    ):
        command = [sys.executable, str(EXAMPLES / name), *arguments]
        result = subprocess.run(
            command, capture_output=True, text=True, env=make_environment(), cwd=tmp_path, timeout=200
        )
        assert result.returncode == status and message in result.stdout + result.stderr, result.stderr
        assert "Traceback" not in result.stderr and "--block_size" not in result.stderr
        assert status != 1 or result.stderr.count("\n") == 1


def test_plain_loop_is_short() -> None:
    lines = (EXAMPLES / "plain_loop.py").read_text().splitlines()
    assert sum(bool(line.strip()) and not line.startswith('"""') for line in lines) <= 36


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of lines that begin with their numbers."""
    (tmp_path / "input.txt").write_text("".join(f"{n:03} {SENTENCE}" for n in range(300)))
    settings = 'inputs = ["input.txt"]\ndocument = "line"\ntokenizer = "byte"\nsplit = "threshold"\ndedup = false\n'
    (tmp_path / "mine.toml").write_text(settings)
    return tmp_path / "mine.toml"


def test_stream_loop_learns(recipe: Path) -> None:
    assert_learned(find_losses(run_example("stream_loop.py", recipe)))


# Compares the blocks that two workers read with those of a single stream, twice for each way to start workers.
COMPARE_WORKERS = """
import sys
from torch.utils.data import DataLoader
from stream_loop import Blocks
from preprocess.stream import TokenStream

if __name__ == "__main__":
    settings = {"block_size": 47, "stream_buffer": 9, "seed": 3}  # a block is a line and its end-of-text
    alone = sorted(block[:47].tolist() for block in TokenStream(sys.argv[1], **settings))
    assert len(alone) > 200
    options = {"num_workers": 2, "persistent_workers": True}
    for method in ("fork", "spawn"):
        loader = DataLoader(Blocks(sys.argv[1], **settings), 7, multiprocessing_context=method, **options)
        for _ in range(2):
            assert sorted(row for x, _ in loader for row in x.tolist()) == alone, method
"""


def test_workers_of_the_stream_loop_read_each_block_once(recipe: Path) -> None:
    (recipe.parent / "workers.py").write_text(COMPARE_WORKERS)
    environment = make_environment() | {"PYTHONPATH": f"{EXAMPLES}:{ROOT}"}
    command = [sys.executable, str(recipe.parent / "workers.py"), str(recipe)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert result.returncode == 0, result.stderr


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_stream_loop_resumes_with_a_stateful_loader(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    stateful_dataloader = pytest.importorskip("torchdata.stateful_dataloader")
    monkeypatch.syspath_prepend(EXAMPLES)
    blocks_class = importlib.import_module("stream_loop").Blocks

    def make_loader() -> Any:
        blocks = blocks_class(str(recipe), block_size=31, stream_buffer=9)
        return stateful_dataloader.StatefulDataLoader(blocks, 5, num_workers=num_workers)

    expected = [x.tolist() for x, _ in make_loader()]
    stopped, resumed = make_loader(), make_loader()
    iterator = iter(stopped)
    assert [next(iterator)[0].tolist() for _ in range(11)] == expected[:11]
    resumed.load_state_dict(stopped.state_dict())
    assert [x.tolist() for x, _ in resumed] == expected[11:] != []


@pytest.mark.skipif(
    not importlib.util.find_spec("accelerate"), reason="Hugging Face's Trainer needs accelerate, which is not installed"
)
def test_hugging_face_trainer_learns(tmp_path: Path) -> None:
    output = run_example("hf_trainer.py", make_build(tmp_path / "tiny"), tmp_path / "out")
    assert_learned([float(loss) for loss in re.findall(r"'loss': '?([\d.]+)", output)])


def test_documentation_shows_the_examples() -> None:
    text = (ROOT / "docs/own_loop.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    examples = [path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py") if path.name not in OF_EXPORTS]
    assert len(blocks) == len(examples)
    for example in examples:
        assert any(remove_indentation(block) in remove_indentation(example) for block in blocks), (
            "docs/own_loop.md shows lines that no example has"
        )


def remove_indentation(code: str) -> str:
    return "\n".join(line.strip() for line in code.splitlines())
