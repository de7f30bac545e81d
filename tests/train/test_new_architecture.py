"""A third architecture: a subclass of LanguageModel, and a line in ARCHITECTURES.

It defines only what `LanguageModel` asks for. It must then train, resume, sample, evaluate and
export like the others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn
from torch.nn import functional as F

from preprocess.errors import MisuseError
from tests.helpers.manifests import make_manifest
from tests.helpers.runs import (
    VOCAB_SIZE,
    delete_checkpoints_after,
    invoke,
    make_config,
    read_losses,
    read_train_losses,
    write_config,
)
from train.config import CHOICES, Config, load_config
from train.model import ARCHITECTURES, make_model
from train.model.base import KVCache, LanguageModel, LayerCache, attend, split_heads
from train.model.gpt2 import GPT2
from train.run.checkpoint import find_checkpoint
from train.run.export_model import config_files, export_tensors

SETTINGS = {"arch": "bag", "max_steps": 5, "warmup_steps": 1, "checkpoint_interval": 2, "eval_interval": 2}


class Block(nn.Module):
    """Attention without positions and without an MLP."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.n_head = config.n_head

    def forward(self, x: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        q, k, v = (split_heads(t, self.n_head) for t in self.qkv(x).chunk(3, dim=2))  # (B, H, T, D)
        return x + attend(q, k, v, mask=mask, cache=cache, dropout=0.0)  # (B, T, C)


class Bag(LanguageModel):
    """A transformer that does not know the order of the tokens, with a tied head."""

    vocabulary_weights = ("wte.weight",)

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        self.wte = nn.Embedding(self.padded_vocab_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        nn.init.normal_(self.wte.weight, std=0.02)

    def embed(self, ids: Tensor, documents: Tensor | None, cache: KVCache | None) -> Tensor:
        return self.wte(ids)  # type: ignore[no-any-return] # (B, T, C)

    def final_norm(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],))

    @property
    def head_weight(self) -> Tensor:
        return self.wte.weight

    @classmethod
    def export_config(cls, config: Config, vocab_size: int) -> dict[str, Any]:
        return {"model_type": "bag", "vocab_size": vocab_size, "n_embd": config.n_embd}


class SquaredLogits(GPT2):
    """GPT-2 with another loss: one line more than `LanguageModel.forward` without its kernel."""

    def forward(self, ids: Tensor, targets: Tensor, documents: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits = self.logits(self.features(ids, documents))  # (B, T, V)
        token_losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")  # (B·T,)
        loss = token_losses.mean() + 1e-2 * logits[..., : self.vocab_size].square().mean()
        return loss, token_losses.detach().view(targets.shape).mean(dim=1)


@pytest.fixture(autouse=True)
def register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "bag", (__name__, "Bag"))
    monkeypatch.setitem(ARCHITECTURES, "squared", (__name__, "SquaredLogits"))
    monkeypatch.setitem(CHOICES, "arch", tuple(ARCHITECTURES))  # computed when train.config is imported


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_new_architecture_trains_resumes_samples_and_evaluates(folder: Path, optimizer: str) -> None:
    config, run = (
        write_config(folder / f"{optimizer}.py", folder / "tiny", **SETTINGS, optimizer=optimizer),
        folder / optimizer,
    )
    result = invoke("train.py", config)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(read_train_losses(run)) == 5 and read_train_losses(run)[-1] < read_train_losses(run)[0]
    before = read_losses(run)
    delete_checkpoints_after(run, 2)
    resumed = invoke("train.py", config)
    assert resumed.returncode == 0 and "continuing after step 2" in resumed.stdout, resumed.stderr
    assert read_losses(run) == before
    sampled = invoke("sample.py", run, "--author", "Anna Akimova", "--tokens", 8)
    assert sampled.returncode == 0 and sampled.stdout.startswith("<author_Anna_Akimova>"), sampled.stderr
    evaluated = invoke("evaluate.py", run, "--device", "cpu")
    assert evaluated.returncode == 0 and "val loss" in evaluated.stdout, evaluated.stderr


def test_new_architecture_starts_from_the_weights_of_its_run(folder: Path) -> None:
    source = write_config(folder / "source.py", folder / "tiny", **SETTINGS)
    assert invoke("train.py", source).returncode == 0
    target = write_config(folder / "target.py", folder / "tiny", **SETTINGS, block_size=32)
    result = invoke("train.py", target, f"--init_from={folder / 'source'}")
    assert result.returncode == 0, result.stderr
    wrong = invoke(
        "train.py", target, f"--init_from={folder / 'source'}", "--arch=gpt2", f"--out_dir={folder / 'wrong'}"
    )
    assert wrong.returncode == 2 and "set --arch=bag" in wrong.stderr


def test_new_architecture_is_exported_without_padded_rows(folder: Path, tmp_path: Path) -> None:
    config = write_config(folder / "exported.py", folder / "tiny", **SETTINGS)
    assert invoke("train.py", config).returncode == 0
    checkpoint, loaded = find_checkpoint(folder / "exported", pytest.fail), load_config(config, {})
    tensors = export_tensors(checkpoint, loaded)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "wte.weight": (VOCAB_SIZE, 32),
        "h.0.qkv.weight": (96, 32),
        "h.1.qkv.weight": (96, 32),
    }
    files = config_files(loaded, make_manifest(eot_id=27), VOCAB_SIZE)
    described = {"model_type": "bag", "vocab_size": VOCAB_SIZE, "n_embd": 32, "dtype": "float32"}
    ids = {"bos_token_id": 27, "eos_token_id": 27, "pad_token_id": 27}
    assert json.loads(files["config.json"]) == described | ids
    result = invoke("export.py", folder / "exported", "--output", tmp_path / "out")
    assert result.returncode == 0 and f"{tmp_path / 'out'}: bag of step 5, " in result.stdout, result.stderr


def test_new_loss_is_trained_and_validation_stays_cross_entropy(folder: Path) -> None:
    """The validation loss is computed from each row's loss, the second value of `forward`."""
    config = write_config(folder / "squared.py", folder / "tiny", **SETTINGS | {"arch": "squared"}, dropout=0.0)
    plain = write_config(folder / "plain.py", folder / "tiny", **SETTINGS | {"arch": "gpt2"}, dropout=0.0)
    assert invoke("train.py", config).returncode == invoke("train.py", plain).returncode == 0
    squared_losses, plain_losses = read_losses(folder / "squared"), read_losses(folder / "plain")
    assert squared_losses[0]["val_loss"] == pytest.approx(plain_losses[0]["val_loss"], rel=1e-6)
    assert squared_losses[1]["train_loss"] > plain_losses[1]["train_loss"]


def test_unknown_architecture_is_rejected_with_the_registered_names() -> None:
    assert isinstance(make_model(make_config(arch="bag"), VOCAB_SIZE), Bag)
    with pytest.raises(MisuseError, match="arch must be one of gpt2, modern, bag, squared, got 'rnn'"):
        make_config(arch="rnn")
