"""Base training, fine-tuning on chats and a chat, with the shipped configs and corpora at tiny sizes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from preprocess.recipes.catalog import load_recipe
from preprocess.shards.format import Build
from tests.conftest import ROOT
from tests.helpers.runs import invoke, read_metric_rows
from tests.preprocess.build.helpers import run_build

TINY = ("--n_layer=1", "--n_head=2", "--n_embd=16", "--max_steps=4", "--warmup_steps=0", "--completion_tokens=4")


@pytest.mark.parametrize(
    ("arch", "template"), [("gpt2", None), ("modern", "nanochat")], ids=["new_tokens", "reserved_tokens"]
)
def test_base_training_fine_tuning_and_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str, template: str | None
) -> None:
    run_build(load_recipe("synthetic", num_pairs=40, tokenizer="byte", chat_template=template), tmp_path / "base")
    run_build(load_recipe("synthetic-chat", num_pairs=60, tokenizer="byte"), tmp_path / "chats")
    base = invoke(
        "train.py", ROOT / "configs/demo.py", f"--data={tmp_path / 'base'}", f"--out_dir={tmp_path / 'demo'}",
        f"--arch={arch}", "--completion_author=none", "--completion_city=none", "--completion_year=none", *TINY,
    )  # fmt: skip
    assert base.returncode == 0, base.stderr
    tuned = invoke(
        "train.py", ROOT / "configs/chat.py", f"--data={tmp_path / 'chats'}", f"--out_dir={tmp_path / 'tuned'}",
        f"--arch={arch}", f"--init_from={tmp_path / 'demo'}", *TINY,
    )  # fmt: skip
    assert tuned.returncode == 0, tuned.stderr
    split = Build(tmp_path / "chats").manifest.splits["train"]
    fraction = sum(shard.loss_tokens or 0 for shard in split.shards) / split.tokens
    assert 0.1 < fraction < 0.6 and f"; the loss counts {fraction:.1%} of the training tokens; " in tuned.stdout
    losses = [row["val_loss"] for row in read_metric_rows(tmp_path / "tuned") if "val_loss" in row]
    assert losses[-1] < losses[0]
    monkeypatch.setattr("sys.stdin", io.StringIO("Кто это был?\n/reset\nWho was it?\n"))
    talk = invoke("chat.py", tmp_path / "tuned", "--system", "Answer.", "--tokens", 4, "--device", "cpu")
    assert (talk.returncode, talk.stderr) == (0, "")
    assert invoke("evaluate.py", tmp_path / "tuned", "--device", "cpu").stdout.count("bits per byte n/a") == 1
    rejected = invoke("chat.py", tmp_path / "demo")
    if template is None:
        rejected = invoke("chat.py", tmp_path / "demo")
        assert rejected.returncode == 2 and "which has no chat template" in rejected.stderr
