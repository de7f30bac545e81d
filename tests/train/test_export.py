"""export.py: transformers loads the folder, and docs/exported_model.md describes it."""

from __future__ import annotations

import errno
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.helpers.manifests import make_manifest
from tests.helpers.runs import (
    AUTHOR_ID,
    EOT_ID,
    REPO,
    SENTENCE,
    SPECIAL_TOKENS,
    VOCAB_SIZE,
    edit_checkpoint,
    encode,
    invoke,
    make_build,
    read_val_losses,
    small_disk,
    write_config,
)
from train.config import Config
from train.data.builds import open_builds
from train.model import make_model
from train.model.base import LanguageModel
from train.model.generate import generate
from train.run.checkpoint import find_checkpoint, load_model
from train.run.export_model import DTYPES, config_files
from train.run.init_from import initialize

# Runs by name, with their settings. transformers loads the last one with the code in the export.
RUNS: dict[str, dict[str, Any]] = {
    "gpt2": {"arch": "gpt2"},
    "modern": {"arch": "modern", "optimizer": "muon"},
    "wide": {"arch": "modern", "n_layer": 4, "n_embd": 128, "n_head": 4, "optimizer": "muon"},
    "shifted": {"arch": "modern", "token_shift": True},
}
LOADABLE = {"gpt2": "GPT2LMHeadModel", "modern": "NanoChatForCausalLM", "wide": "NanoChatForCausalLM"}
WEIGHTS = (
    "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each architecture that has learned its sentence.

    The shards of their build are deleted.
    """
    folder = tmp_path_factory.mktemp("runs")
    build = make_build(folder / "tiny")
    for name, settings in RUNS.items():
        config = write_config(
            folder / f"{name}.py", build, max_steps=100, eval_interval=50, dropout=0.0, block_size=48, **settings
        )
        assert invoke("train.py", config).returncode == 0
    for shard in build.glob("*.bin"):
        shard.unlink()
    return {name: folder / name for name in RUNS}


@pytest.fixture(scope="module")
def exported(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    for name, run in runs.items():
        result = invoke("export.py", run, "--output", folder / name)
        assert (result.returncode, result.stderr) == (0, "")
        expected = f"{folder / name}: {RUNS[name]['arch']} of step 100, "
        assert result.stdout.startswith(expected) and result.stdout.endswith(f", {VOCAB_SIZE} ids\n")
    return {name: folder / name for name in RUNS}


def load_run(run: Path) -> tuple[LanguageModel, Config]:
    checkpoint = find_checkpoint(run, pytest.fail)
    config = checkpoint.info.config
    model = make_model(config, checkpoint.info.vocab_size)
    load_model(checkpoint, model)
    return model.eval(), config


@torch.no_grad()
def compute_logits(run: Path, ids: torch.Tensor) -> torch.Tensor:
    model, _ = load_run(run)
    return model.logits(model.features(ids))[..., :VOCAB_SIZE]


def random_ids() -> torch.Tensor:
    return torch.randint(VOCAB_SIZE, (3, 48), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", RUNS)
def test_folder_has_the_documented_files(exported: dict[str, Path], name: str) -> None:
    folder = exported[name]
    files = WEIGHTS if name != "shifted" else tuple(sorted((*WEIGHTS, "modeling_folio.py")))
    assert tuple(sorted(p.name for p in folder.iterdir())) == files
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {(folder / "config.json").stat().st_mode & 0o777}
    assert [p.name for p in folder.parent.iterdir() if p.name not in RUNS] == []
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    tensors = load_file(folder / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert {t.shape[0] for name, t in tensors.items() if any(part in name for part in ("wte", "embed", "lm_head"))} == {
        VOCAB_SIZE
    }
    ids = json.loads((folder / "generation_config.json").read_text())
    assert ids == {"bos_token_id": EOT_ID, "eos_token_id": EOT_ID, "pad_token_id": EOT_ID}


def test_config_files_take_control_ids_from_the_build() -> None:
    manifest = make_manifest(bos_id=1, eot_id=None, pad_id=0)
    files = config_files(Config(data="x", out_dir="y"), manifest, 60)
    assert json.loads(files["generation_config.json"]) == {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
    # If the key were missing, transformers would assume the id of GPT-2, 50256.
    assert json.loads(files["config.json"])["eos_token_id"] is None


@pytest.mark.parametrize(("template", "end"), [("nanochat", 57), ("chatml", 58)])
def test_generation_ends_at_the_end_of_a_reply_too(template: str, end: int) -> None:
    tokens = {"<|assistant_end|>": 57, "<|im_end|>": 58}
    manifest = make_manifest(eot_id=7, special_tokens=tokens, recipe={"chat_template": template})
    files = config_files(Config(data="x", out_dir="y"), manifest, 60)
    assert json.loads(files["generation_config.json"])["eos_token_id"] == [7, end]
    assert json.loads(files["config.json"])["eos_token_id"] == 7


def load_with_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, loading_info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading_info.values()), loading_info
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", LOADABLE)
def test_transformers_computes_the_same_logits(
    runs: dict[str, Path], exported: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = load_with_transformers(exported[name], monkeypatch)
    assert type(model).__name__ == LOADABLE[name]
    logits = compute_logits(runs[name], random_ids())
    torch.testing.assert_close(model(random_ids()).logits, logits, atol=1e-5, rtol=0)
    assert logits.std() > 1, "a model that has learned nothing would hide a difference"


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "modern"])
@pytest.mark.parametrize("prompt", [[AUTHOR_ID], [EOT_ID], [*encode("fox jum").tolist()], [3, 1, 4, 1, 5]])
def test_transformers_generates_the_same_ids(
    runs: dict[str, Path], exported: dict[str, Path], monkeypatch: pytest.MonkeyPatch, prompt: list[int], name: str
) -> None:
    their_model = load_with_transformers(exported[name], monkeypatch)
    model, config = load_run(runs[name])
    greedy = Config(**(config.as_dict() | {"temperature": 0.0, "completion_tokens": 48 - len(prompt)}))
    expected = list(generate(model, prompt, config=greedy, eot_id=EOT_ID))
    ids = torch.tensor([prompt])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 48 - len(prompt), "do_sample": False}
    generated = their_model.generate(ids, **options)[0].tolist()
    assert [i for i in generated[len(prompt) :] if i != EOT_ID] == expected
    assert len(expected) >= 3


def test_transformers_tokenizes_with_the_same_ids(exported: dict[str, Path]) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported["gpt2"])
    assert tokenizer(SENTENCE)["input_ids"] == encode(SENTENCE).tolist()
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(SPECIAL_TOKENS.values())
    assert (tokenizer.eos_token_id, tokenizer.model_max_length) == (EOT_ID, 48)


@pytest.mark.parametrize("name", LOADABLE)
def test_exported_folder_can_start_a_run(
    exported: dict[str, Path], runs: dict[str, Path], tmp_path: Path, name: str
) -> None:
    settings = {"max_steps": 6, "block_size": 48, "dropout": 0.0, **RUNS[name]}
    config = write_config(tmp_path / "run.py", make_build(tmp_path / "tiny"), **settings)
    assert invoke("train.py", config, f"--init_from={exported[name]}").returncode == 0
    first_loss, source_loss = read_val_losses(tmp_path / "run")[0], read_val_losses(runs[name])[100]
    assert first_loss == pytest.approx(source_loss, abs=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gpt2", "modern"])
def test_dtype_rounds_every_weight(
    exported: dict[str, Path], runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    name: str, dtype: str,
) -> None:  # fmt: skip
    assert invoke("export.py", runs[name], "--output", tmp_path / "out", "--dtype", dtype).returncode == 0
    exact = load_file(exported[name] / "model.safetensors")
    rounded = load_file(tmp_path / "out" / "model.safetensors")
    assert rounded.keys() == exact.keys()
    for key, tensor in rounded.items():
        assert tensor.dtype == DTYPES[dtype] and tensor.equal(exact[key].to(DTYPES[dtype]))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    assert load_with_transformers(tmp_path / "out", monkeypatch).dtype == DTYPES[dtype]
    # A run that starts with the export has the rounded weights.
    model, config = load_run(runs[name])
    start = Config(**(config.as_dict() | {"init_from": str(tmp_path / "out")}))
    again = make_model(start, VOCAB_SIZE)
    initialize(again, start, open_builds(str(make_build(tmp_path / "tiny"))), warn=[].append)
    for key, parameter in again.state_dict().items():
        rows = VOCAB_SIZE if key in model.vocabulary_weights else None
        assert parameter[:rows].equal(model.state_dict()[key][:rows].to(DTYPES[dtype]).float())


def test_number_that_float16_cannot_represent_is_one_line(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = load_file(find_checkpoint(runs["gpt2"], pytest.fail).folder / "model.safetensors")
    tensors["ln_f.bias"][1] = 65_520.0  # the smallest that is rounded to infinity
    monkeypatch.setattr("train.run.export_model.read_weights", lambda checkpoint: tensors.items())
    result = invoke("export.py", runs["gpt2"], "--output", tmp_path / "out", "--dtype", "float16")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "ln_f.bias has a number of the size 6.552e+04, and float16 ends at 65,504; use --dtype" in result.stderr
    assert not (tmp_path / "out").exists()
    assert invoke("export.py", runs["gpt2"], "--output", tmp_path / "out", "--dtype", "bfloat16").returncode == 0


def norm(x: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon)


def compute_documented_logits(folder: Path, ids: np.ndarray) -> np.ndarray:
    """Return the logits, (T, V), of `ids`, (T,), as docs/exported_model.md describes, in NumPy."""
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["version"]) == ("folio-modern", 3)
    w = {name: tensor.double().numpy() for name, tensor in load_file(folder / "model.safetensors").items()}
    T, H, epsilon = len(ids), config["num_attention_heads"], config["rms_norm_eps"]
    D = config["hidden_size"] // H
    angle = np.outer(
        np.arange(T), config["rope_parameters"]["rope_theta"] ** (-2 * np.arange(D // 2) / D)
    )  # (T, D / 2)

    def rotate(x: np.ndarray) -> np.ndarray:
        a, b = x[..., : D // 2], x[..., D // 2 :]
        return np.concatenate([a * np.cos(angle) + b * np.sin(angle), b * np.cos(angle) - a * np.sin(angle)], axis=-1)

    e = norm(w["model.embed_tokens.weight"][ids], epsilon)
    x = norm(e + w["shift"] * np.concatenate([np.zeros_like(e[:1]), e[:-1]]), epsilon)
    for n in range(config["num_hidden_layers"]):
        layer = {key.removeprefix(f"model.layers.{n}."): matrix for key, matrix in w.items()}
        parts = [norm(x, epsilon) @ layer[f"self_attn.{part}_proj.weight"].T for part in "qkv"]
        q, k, v = (part.reshape(T, H, D).transpose(1, 0, 2) for part in parts)  # (H, T, D)
        q, k = rotate(norm(q, epsilon)), rotate(norm(k, epsilon))
        scores = np.where(np.tri(T, dtype=bool), q @ k.transpose(0, 2, 1) / np.sqrt(D), -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        y = weights / weights.sum(axis=-1, keepdims=True) @ v
        x = x + y.transpose(1, 0, 2).reshape(T, H * D) @ layer["self_attn.o_proj.weight"].T
        x = x + np.maximum(norm(x, epsilon) @ layer["mlp.fc1.weight"].T, 0) ** 2 @ layer["mlp.fc2.weight"].T
    cap = config["final_logit_softcapping"]
    logits: np.ndarray = cap * np.tanh(norm(x, epsilon) @ w["lm_head.weight"].T / cap)
    return logits


def test_documentation_describes_how_to_compute_the_modern_model(
    runs: dict[str, Path], exported: dict[str, Path]
) -> None:
    ids = random_ids()
    rows = [compute_documented_logits(exported["shifted"], row.numpy()) for row in ids]
    logits = torch.from_numpy(np.stack(rows)).float()
    torch.testing.assert_close(logits, compute_logits(runs["shifted"], ids), atol=1e-5, rtol=0)
    assert logits.std() > 1, "a model that has learned nothing would hide a difference"


def test_documentation_names_every_weight_and_number(exported: dict[str, Path]) -> None:
    page = (REPO / "docs" / "exported_model.md").read_text(encoding="utf-8")
    for name in load_file(exported["shifted"] / "model.safetensors"):
        assert f"`{re.sub(r'layers[.][01][.]', 'layers.n.', name)}`" in page
    for key in (
        "rope_theta", "final_logit_softcapping", "rms_norm_eps", "max_position_embeddings", "num_hidden_layers",
        "num_attention_heads", "hidden_size", "vocab_size", "version", "model_type",
    ):  # fmt: skip
        assert key in page and key in (exported["shifted"] / "config.json").read_text()
    assert all(f"`{name}`" in page for name in (*WEIGHTS, "modeling_folio.py"))


def test_export_prints_json(runs: dict[str, Path], tmp_path: Path) -> None:
    result = invoke("export.py", runs["gpt2"], "--output", tmp_path / "out", "--json")
    found = json.loads(result.stdout)
    assert found["output"] == str(tmp_path / "out") and (found["arch"], found["step"]) == ("gpt2", 100)
    assert found.keys() == {"output", "arch", "step", "num_parameters", "vocab_size"}


def test_best_and_named_checkpoints_are_exported(runs: dict[str, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs["gpt2"], tmp_path / "run"))
    edit_checkpoint(run / "checkpoints" / "step-00000100", watch={"best_step": 96, "best_loss": 1.0, "num_since": 0})
    assert "gpt2 of step 100, " in invoke("export.py", run, "--output", tmp_path / "newest").stdout
    assert "gpt2 of step 96, " in invoke("export.py", run, "--output", tmp_path / "best", "--best").stdout
    assert (
        "gpt2 of step 90, "
        in invoke("export.py", run / "checkpoints" / "step-00000090", "--output", tmp_path / "named").stdout
    )
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("newest", "best", "named")]
    assert len(set(weights)) == 3


def test_output_must_be_a_new_or_empty_folder(runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs["gpt2"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    (tmp_path / "file").write_text("x")
    assert invoke("export.py", run, "--output", tmp_path / "empty").returncode == 0
    assert invoke("export.py", run, "--output", tmp_path / "new" / "deep").returncode == 0
    for name in ("full", "file", "empty"):
        result = invoke("export.py", run, "--output", tmp_path / name)
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
        assert f"{tmp_path / name} must be a new or empty folder; choose another --output, or empty it" in result.stderr
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["precious"]
    result = invoke("export.py", run, "--output", tmp_path / "file" / "below")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1) and "is inside a file" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--output", ""], "--output is empty; name a file or a folder"),
        (["RUN", "--output", "~nosuchuser/x"], "but the home directory of '~nosuchuser' is not known"),
        (["RUN", "--output", "x" * 5000], "--output is longer than this system allows"),
        (["~nosuchuser", "--output", "x"], "RUN is '~nosuchuser', but the home directory of"),
        (["RUN", "--output", "x", "--device"], "there is no option --device; "),
        (["--output", "x"], "the following arguments are required: RUN"),
        (["RUN", "--output", "x", "--dtype", "int8"], "--dtype"),
        (["RUN"], "the following arguments are required: --output"),
    ],
)
def test_missing_argument_is_one_line(arguments: list[str], message: str) -> None:
    result = invoke("export.py", *arguments)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr


def test_full_disk_leaves_no_folder(runs: dict[str, Path], tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        filler = disk / "filler"
        filler.write_bytes(bytes(970_000))
        result = invoke("export.py", runs["gpt2"], "--output", disk / "out")
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
        assert [p.name for p in disk.iterdir()] == ["filler"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_interrupted_export_leaves_no_folder(
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    def fail(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise error

    (tmp_path / "out").mkdir()
    monkeypatch.setattr("train.run.export_model.write_tensors", fail)
    status = invoke("export.py", runs["gpt2"], "--output", tmp_path / "out").returncode
    assert status == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["out"]
