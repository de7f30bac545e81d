"""GGUF files: llama.cpp (through xllamacpp) has the ids of our tokenizer and writes the texts of our sampler."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from preprocess.build.build import build
from preprocess.progress import Progress
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.format import Build
from preprocess.tokenizers import load_tokenizer
from tests.helpers.runs import invoke, make_build, write_config
from train.config import Config
from train.model import make_model
from train.model.generate import generate
from train.run.checkpoint import find_checkpoint, load_model

TEXT = "".join(f"Line {i} says that {i} and {i + 1} make {2 * i + 1}; the dog's 😀 ёлка.\n" for i in range(4))
NUM_TOKENS = 200


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """Return a run of a GPT-2 that has learnt TEXT by heart, on a build with the tokenizer of GPT-2 and chat tokens."""
    folder = tmp_path_factory.mktemp("gguf")
    (folder / "a.txt").write_text(TEXT * 100, encoding="utf-8")
    recipe = load_recipe(
        None, inputs=(str(folder / "a.txt"),), dedup=False, val_fraction=0.0, tokenizer="gpt2", chat_template="chatml"
    )
    build(recipe, folder / "made", name="made", source=None, replace=False, progress=Progress(quiet=True))
    config = write_config(
        folder / "run.py", folder / "made", max_steps=150, warmup_steps=10, n_embd=64, block_size=256, batch_size=1,
        gradient_accumulation_steps=1, dropout=0.0, learning_rate=5e-3, eval_interval=1_000, checkpoint_interval=1_000,
    )  # fmt: skip
    result = invoke("train.py", config)
    assert result.returncode == 0, result.stderr
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_llama_cpp_writes_the_greedy_text_of_our_sampler(run: Path, tmp_path: Path, dtype: str) -> None:
    pytest.importorskip("gguf", reason="needs gguf: pip install 'folio-lm[gguf]'")
    xllamacpp = pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")
    result = invoke("export.py", run, "--output", tmp_path / "out", "--format", "gguf", "--dtype", dtype)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.gguf"]
    checkpoint = find_checkpoint(run, pytest.fail)
    config = checkpoint.info.config
    model = make_model(config, checkpoint.info.vocab_size)
    load_model(checkpoint, model)
    made = Build(run.parent / "made")
    tokenizer = load_tokenizer(made.folder, made.manifest)
    prompt = tokenizer.encode_text("Line 1 says that").tolist()
    greedy = Config(**(config.as_dict() | {"temperature": 0.0, "completion_tokens": NUM_TOKENS}))
    with torch.no_grad():
        expected = list(generate(model.eval(), prompt, config=greedy, eot_id=made.manifest.eot_id))
    assert len(expected) == NUM_TOKENS and len(set(expected)) > 20
    text = tokenizer.decode_bytes(np.array(expected)).decode(errors="replace")
    server = start_server(xllamacpp, tmp_path / "out" / "model.gguf")
    for given in (prompt, "Line 1 says that"):  # llama.cpp encodes the second one
        found = server.handle_completions(
            {"prompt": given, "max_tokens": NUM_TOKENS, "temperature": 0.0, "cache_prompt": False}
        )
        assert (found["usage"]["prompt_tokens"], found["usage"]["completion_tokens"]) == (len(prompt), NUM_TOKENS)
        assert found["choices"][0]["text"] == text


@pytest.mark.slow
def test_llama_cpp_applies_the_chat_template(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs gguf: pip install 'folio-lm[gguf]'")
    xllamacpp = pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")
    transformers = pytest.importorskip("transformers")
    for name in ("gguf", "huggingface"):
        assert invoke("export.py", run, "--output", tmp_path / name, "--format", name).returncode == 0
    messages = [
        {"role": role, "content": text}
        for role, text in (("system", "Be brief."), ("user", "What?\n  x"), ("assistant", "ok"), ("user", "Line 1"))
    ]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "huggingface")
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    server = start_server(xllamacpp, tmp_path / "gguf" / "model.gguf")
    found = server.handle_chat_completions({"messages": messages, "max_tokens": 5, "temperature": 0.0})
    assert found["usage"]["prompt_tokens"] == len(ids)


def start_server(xllamacpp: Any, path: Path) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = 256, 1, False
    parameters.cpuparams.n_threads = 1
    return xllamacpp.Server(parameters)


def test_file_describes_the_model(run: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs gguf: pip install 'folio-lm[gguf]'")
    assert invoke("export.py", run, "--output", tmp_path / "out", "--format", "gguf").returncode == 0
    fields = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields
    expected = {
        "general.architecture": "gpt2", "gpt2.context_length": 256, "gpt2.embedding_length": 64, "gpt2.block_count": 2,
        "gpt2.attention.head_count": 2, "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.eos_token_id": 50_256,
        "tokenizer.ggml.eot_token_id": 50_258, "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip
    assert {key: fields[key].contents() for key in expected} == expected
    tokens, types = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type"))
    assert tokens[50_256:] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert types[50_255:] == [1, 3, 3, 3] and "generation -%}" not in fields["tokenizer.chat_template"].contents()


def test_other_models_and_tokenizers_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs gguf: pip install 'folio-lm[gguf]'")
    tiny = make_build(tmp_path / "tiny")
    for name, message in (
        ("modern", "llama.cpp cannot compute arch=modern, only gpt2; export this run with --format huggingface"),
        ("gpt2", "--format gguf needs a tokenizer that divides text as GPT-2's does, and this run has another; use"),
    ):
        config = write_config(tmp_path / f"{name}.py", tiny, arch=name, max_steps=1, warmup_steps=0)
        assert invoke("train.py", config).returncode == 0
        result = invoke("export.py", tmp_path / name, "--output", tmp_path / "out", "--format", "gguf")
        assert result.returncode in (1, 2) and result.stderr.count("\n") == 1 and message in result.stderr
        assert not (tmp_path / "out").exists()


def test_missing_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(tmp_path / "run.py", make_build(tmp_path / "tiny"), max_steps=1, warmup_steps=0)
    assert invoke("train.py", config).returncode == 0
    monkeypatch.setitem(sys.modules, "gguf", None)
    result = invoke("export.py", tmp_path / "run", "--output", tmp_path / "out", "--format", "gguf")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "--format gguf needs the library gguf; install it with pip install 'folio-lm[gguf]'" in result.stderr
