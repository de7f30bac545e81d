"""The examples that fine-tune an export with peft and trl: they learn, and Folio and transformers read the result."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT
from tests.helpers.chats import REPLIES, make_chat_build
from tests.helpers.runs import encode, invoke, make_build, make_config, train_run, write_config
from train.model import get_architecture, make_model
from train.run.huggingface_folder import read_sizes, read_weights

pytestmark = pytest.mark.slow
TEXT = "pack my box with"


def load_example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"examples/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def export(folder: Path, **settings: Any) -> Path:
    run = train_run(folder, "run", max_steps=12, checkpoint_interval=12, eval_interval=12, **settings)
    assert invoke("export.py", run, "--output", folder / "export").returncode == 0
    return folder / "export"


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@torch.no_grad()
def compute_folio_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of the model in `folder` as a run with `init_from` computes them, (T, V)."""
    arch, sizes = read_sizes(folder)
    weights = read_weights(folder, get_architecture(arch))
    model = make_model(make_config(arch=arch, **sizes), len(weights["wte.weight"])).eval()
    for name, parameter in model.state_dict().items():
        parameter[: len(weights[name])] = weights[name]
    return model.logits(model.features(ids[None]))[0, :, : model.vocab_size]


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_lora_trains_only_adapters_and_saves_an_ordinary_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arch: str
) -> None:
    pytest.importorskip("peft")
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_build(tmp_path / "tiny")
    folder, texts = export(tmp_path, arch=arch), write_lines(tmp_path / "texts.jsonl", [{"text": TEXT}] * 9)
    lora, parameters = load_example("lora"), {}

    def get_peft_model(*arguments: Any) -> Any:
        model = original(*arguments)
        parameters.update(model.named_parameters())
        return model

    original = lora.get_peft_model
    monkeypatch.setattr(lora, "get_peft_model", get_peft_model)
    lora.train(str(folder), str(texts), str(tmp_path / "tuned"))

    losses = [float(loss) for loss in re.findall(r"^step \d+: loss ([\d.]+)$", capsys.readouterr().out, re.MULTILINE)]
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.5
    adapted = {re.sub(r".*\.(\w+)\.lora_.*", r"\1", name) for name, each in parameters.items() if each.grad is not None}
    assert adapted == (
        {"c_attn", "c_proj", "c_fc"} if arch == "gpt2" else {f"{p}_proj" for p in "qkvo"} | {"fc1", "fc2"}
    )
    assert all("lora_" in name for name, each in parameters.items() if each.grad is not None or each.requires_grad)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "tuned/model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    matrices = {name for name, tensor in before.items() if tensor.dim() == 2 and re.search(r"\.\d+\.", name)}
    assert before.keys() == after.keys() and changed == matrices

    ids = torch.from_numpy(encode(TEXT).astype("int64"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    with torch.no_grad():
        torch.testing.assert_close(model(ids[None]).logits[0], compute_folio_logits(tmp_path / "tuned", ids))
    assert AutoTokenizer.from_pretrained(tmp_path / "tuned")(TEXT).input_ids == ids.tolist()
    config = write_config(tmp_path / "next.py", tmp_path / "tiny", arch=arch, max_steps=2, warmup_steps=0)
    result = invoke("train.py", config, f"--init_from={tmp_path / 'tuned'}")
    assert result.returncode == 0, result.stderr


def test_trl_learns_only_replies_with_the_exported_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    make_chat_build(tmp_path / "tiny")
    folder = export(tmp_path, block_size=32, mask_documents=True, arch="modern", learning_rate=1e-4, min_lr=1e-5)
    turns = [({"role": "user", "content": m}, {"role": "assistant", "content": r}) for m, r in REPLIES.items()]
    chats = write_lines(tmp_path / "chats.jsonl", [{"messages": turn} for turn in turns] * 8)
    trl_chat, losses, batches = load_example("trl_chat"), [], []

    class Trainer(trl_chat.SFTTrainer):
        def log(self, logs: dict[str, float], *arguments: Any, **settings: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])
            super().log(logs, *arguments, **settings)

        def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **settings: Any) -> Any:
            batches.append({key: value.clone() for key, value in inputs.items() if hasattr(value, "clone")})
            return super().compute_loss(model, inputs, *arguments, **settings)

    trl_chat.SFTTrainer = Trainer
    trl_chat.train(str(folder), str(chats), str(tmp_path / "tuned"))
    assert len(losses) == 5 and losses[-1] < losses[0] / 2, losses

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tuned")
    learnt = {tokenizer.decode(row[row >= 0]) for row in batches[0]["labels"]}
    assert learnt == {f"{reply}<|assistant_end|>" for reply in REPLIES.values()}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    for message in REPLIES:
        messages = [{"role": "user", "content": message}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        output = model.generate(**ids, max_new_tokens=12, do_sample=False)
        assert tokenizer.decode(output[0, ids["input_ids"].shape[1] :]) in learnt
    assert invoke("train.py", write_config(
        tmp_path / "next.py", tmp_path / "tiny", arch="modern", max_steps=2, warmup_steps=0
    ), f"--init_from={tmp_path / 'tuned'}").returncode == 0  # fmt: skip
