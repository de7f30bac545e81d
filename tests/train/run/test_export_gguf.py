"""GGUF files: llama.cpp (through xllamacpp) has the ids of our tokenizer and writes the texts of our sampler."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from safetensors.torch import load_file

from preprocess.build.build import build
from preprocess.errors import FolioError
from preprocess.progress import Progress
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.format import Build
from preprocess.tokenizers import load_tokenizer
from preprocess.tokenizers.sentencepiece_model import NORMAL, SentencePieceModel
from tests.helpers.runs import invoke, make_build, write_config
from train.config import Config
from train.model import make_model
from train.model.generate import generate
from train.run.checkpoint import find_checkpoint, load_model
from train.run.export_gguf import QUANTIZED_DTYPES, write_gguf

AUTHOR = "Анна Smith"
# Two tokens are always followed by the same one, so a model soon knows the text by heart.
TEXT = (
    "A quick brown fox jumps over 12 lazy dogs, while five wizards box.\n"
    "Широкая электрификация южных губерний даст мощный толчок 😀 the dog's naïve café!\n\n"
)
PROMPT = "A quick brown"
NUM_TOKENS = 200
TOKENIZER_PROBES = (
    TEXT,
    "  two  spaces,\ttab\r\n\n don't 12345 ٣ naïve 日本語 👩\u200d🔬\u2028 x  ",
    "<|endoftext|><eos><0x41>",
    " ",
    # Parts of words, in which the order of the merges matters.
    "".join(TEXT[i : i + n] for i, n in np.random.default_rng(1).integers((0, 1), (len(TEXT), 6), (500, 2))),
)


def train_run(folder: Path, **settings: Any) -> Path:
    """Return a run of a GPT-2 that has learnt TEXT by heart, after the control token of AUTHOR."""
    (folder / "a.txt").write_text(TEXT * 200, encoding="utf-8")
    recipe = load_recipe(
        None, inputs=(str(folder / "a.txt"),), dedup=False, val_fraction=0.0, author=AUTHOR, document="passage",
        passage_characters=16 * len(TEXT), **settings,
    )  # fmt: skip
    build(recipe, folder / "made", name="made", source=None, replace=False, progress=Progress(quiet=True))
    config = write_config(
        folder / "run.py", folder / "made", max_steps=120, warmup_steps=10, n_embd=64, block_size=320, batch_size=1,
        gradient_accumulation_steps=1, dropout=0.0, learning_rate=5e-3, eval_interval=1_000, checkpoint_interval=1_000,
    )  # fmt: skip
    result = invoke("train.py", config)
    assert result.returncode == 0, result.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def gpt2_run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    return train_run(tmp_path_factory.mktemp("gpt2"), tokenizer="gpt2", chat_template="chatml")


@pytest.fixture(scope="module")
def pieces_run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    return train_run(tmp_path_factory.mktemp("pieces"), tokenizer="sentencepiece", num_pieces=400)


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Path:
    """Return the run of the fixture whose name is the parameter."""
    path: Path = request.getfixturevalue(request.param)
    return path


def export(run: Path, output: Path, dtype: str, format: str = "gguf") -> Path:
    result = invoke("export.py", run, "--output", output, "--format", format, "--dtype", dtype)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return output / "model.gguf" if format == "gguf" else output


def start_server(path: Path) -> Any:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = 320, 1, False
    parameters.cpuparams.n_threads = 1
    return xllamacpp.Server(parameters)


def complete(server: Any, prompt: str | list[int]) -> str:
    """Return NUM_TOKENS tokens of llama.cpp after a prompt as text. It encodes a prompt that is a text."""
    settings = {"max_tokens": NUM_TOKENS, "temperature": 0.0, "cache_prompt": False, "ignore_eos": False}
    found = server.handle_completions({"prompt": prompt, **settings})
    assert found["usage"]["completion_tokens"] == NUM_TOKENS
    text: str = found["choices"][0]["text"]
    return text


def sample_greedily(run: Path, prompt: list[int]) -> list[int]:
    checkpoint = find_checkpoint(run, pytest.fail)
    model = make_model(checkpoint.info.config, checkpoint.info.vocab_size)
    load_model(checkpoint, model)
    greedy = Config(**(checkpoint.info.config.as_dict() | {"temperature": 0.0, "completion_tokens": NUM_TOKENS}))
    with torch.no_grad():
        ids = list(generate(model.eval(), prompt, config=greedy, eot_id=Build(run.parent / "made").manifest.eot_id))
    assert len(ids) == NUM_TOKENS and len(set(ids)) > 15
    return ids


def generate_with_transformers(folder: Path, prompt: list[int]) -> list[int]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([prompt])
    generated = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_TOKENS, do_sample=False)
    found: list[int] = generated[0, len(prompt) :].tolist()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "dtypes"),
    [("gpt2_run", ["float16"]), ("pieces_run", ["float32", "float16", "bfloat16", "q8_0"])],
    indirect=["run"],
)
def test_llama_cpp_and_transformers_write_the_greedy_text_of_our_sampler(
    run: Path, tmp_path: Path, dtypes: list[str]
) -> None:
    made = Build(run.parent / "made")
    tokenizer = load_tokenizer(made.folder, made.manifest)
    (control,) = (name for name in made.manifest.special_tokens if name.startswith("<author_"))
    text_ids = tokenizer.encode_text(PROMPT).tolist()
    prompts = {PROMPT: text_ids, control + PROMPT: [made.manifest.special_tokens[control], *text_ids]}
    expected = {prompt: sample_greedily(run, ids) for prompt, ids in prompts.items()}
    folder = export(run, tmp_path / "huggingface", "float32", "huggingface")
    for prompt, ids in prompts.items():
        assert generate_with_transformers(folder, ids) == expected[prompt]
    for dtype in dtypes:
        server = start_server(export(run, tmp_path / dtype, dtype))
        for probe in TOKENIZER_PROBES:
            assert tokenize(server, probe) == tokenizer.encode_text(probe).tolist(), probe
        for prompt, ids in prompts.items():
            assert tokenize(server, prompt, parse_special=True) == ids
            text = tokenizer.decode_bytes(np.array(expected[prompt])).decode(errors="replace")
            assert complete(server, ids) == complete(server, prompt) == text, dtype


def tokenize(server: Any, text: str, *, parse_special: bool = False) -> list[int]:
    address = f"{server.listening_address}/tokenize"
    ids: list[int] = requests.post(address, json={"content": text, "parse_special": parse_special}).json()["tokens"]
    return ids


@pytest.mark.slow
def test_llama_cpp_applies_the_chat_template(gpt2_run: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    messages = [
        {"role": role, "content": text}
        for role, text in (("system", "Be brief."), ("user", "What?\n  x"), ("assistant", "ok"), ("user", "fox"))
    ]
    tokenizer = AutoTokenizer.from_pretrained(export(gpt2_run, tmp_path / "huggingface", "float32", "huggingface"))
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    server = start_server(export(gpt2_run, tmp_path / "gguf", "float16"))
    found = server.handle_chat_completions({"messages": messages, "max_tokens": 5, "temperature": 0.0})
    assert found["usage"]["prompt_tokens"] == len(ids)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", QUANTIZED_DTYPES)
def test_quantized_blocks_are_those_of_llama_cpp(dtype: str) -> None:
    """The library gguf is llama.cpp's Python code; llama-quantize calls the C function ggml_quantize_chunk."""
    import gguf
    import xllamacpp.xllamacpp

    kind = gguf.GGMLQuantizationType[dtype.upper()]
    rows = np.random.default_rng(1).standard_normal((64, 320)).astype(np.float32)
    rows[0] = 0.0
    rows[1, :] = 1e-6
    rows[2, ::7] *= 1e3
    expected = gguf.quantize(rows, kind)
    found = np.zeros_like(expected)
    function = ctypes.CDLL(xllamacpp.xllamacpp.__file__).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    assert function(kind.value, rows.ctypes.data, found.ctypes.data, 0, *rows.shape, None) == expected.nbytes
    np.testing.assert_array_equal(found, expected)


def test_file_describes_the_model(pieces_run: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs gguf: pip install 'folio-lm[gguf]'")
    fields = gguf.GGUFReader(export(pieces_run, tmp_path / "out", "float32")).fields
    expected = {
        "general.architecture": "gpt2", "gpt2.context_length": 320, "gpt2.embedding_length": 64, "gpt2.block_count": 2,
        "gpt2.attention.head_count": 2, "tokenizer.ggml.model": "llama", "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.eos_token_id": 3, "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_space_prefix": False,
    }  # fmt: skip
    assert {key: fields[key].contents() for key in expected} == expected
    tokens, types = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type"))
    control, unknown, byte = (gguf.TokenType[name] for name in ("CONTROL", "UNKNOWN", "BYTE"))
    assert types[:5] == [control, unknown, control, control, byte] and types[-1] == control
    assert tokens[:5] == ["<pad>", "<unk>", "<bos>", "<eos>", "<0x00>"] and tokens[-1] == "<author_Анна_Smith>"
    # The pieces that a merge makes have the order that SentencePiece gave them.
    scores = fields["tokenizer.ggml.scores"].contents()
    model = SentencePieceModel((pieces_run.parent / "made" / "tokenizer" / "sentencepiece.model").read_bytes())
    merged = [i for i, piece in enumerate(model.read_pieces()) if piece.type == NORMAL and len(piece.text.decode()) > 1]
    expected_order = sorted(merged, key=lambda i: model.read_pieces()[i].score)
    assert len(merged) >= 40 and sorted(merged, key=lambda i: scores[i]) == expected_order


@pytest.mark.parametrize(("dtype", "bits"), [("q8_0", 8.5), ("q5_1", 6.0), ("q4_0", 4.5)])
def test_quantized_export_stores_matrices_in_blocks(pieces_run: Path, tmp_path: Path, dtype: str, bits: float) -> None:
    gguf = pytest.importorskip("gguf", reason="needs gguf: pip install 'folio-lm[gguf]'")
    files = {name: gguf.GGUFReader(export(pieces_run, tmp_path / name, name)) for name in ("float32", dtype)}
    exact, quantized = ({tensor.name: tensor for tensor in file.tensors} for file in files.values())
    assert quantized.keys() == exact.keys()
    for name, tensor in quantized.items():
        is_matrix = name.endswith(".weight") and "norm" not in name and name != "position_embd.weight"
        assert tensor.n_bytes * 8 / tensor.n_elements == (bits if is_matrix else 32), name
        values, expected = gguf.dequantize(tensor.data, tensor.tensor_type).ravel(), exact[name].data.ravel()
        difference, limit = np.abs(values - expected).max(), 0.15 * np.abs(expected).max()
        assert 0 < difference < limit if is_matrix else difference == 0, name
    assert files[dtype].fields["general.file_type"].contents() == gguf.LlamaFileType[f"MOSTLY_{dtype.upper()}"]


def test_run_without_an_end_of_text_token_is_an_error(pieces_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs gguf: pip install 'folio-lm[gguf]'")
    folder = export(pieces_run, tmp_path / "out", "float32", "huggingface")
    files = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    ids = json.loads(files["generation_config.json"]) | {"eos_token_id": None}
    files["generation_config.json"] = json.dumps(ids).encode()
    config = find_checkpoint(pieces_run, pytest.fail).info.config
    with pytest.raises(FolioError, match="--format gguf needs an end-of-text token, and this run's tokenizer has none"):
        write_gguf(tmp_path / "model.gguf", load_file(folder / "model.safetensors"), files, config, "float32")


def test_rows_that_are_not_whole_blocks_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs gguf: pip install 'folio-lm[gguf]'")
    config = write_config(tmp_path / "run.py", make_build(tmp_path / "tiny"), n_embd=48, max_steps=1, warmup_steps=0)
    assert invoke("train.py", config).returncode == 0
    arguments = ("export.py", tmp_path / "run", "--output", tmp_path / "out", "--dtype", "q4_0")
    for format, message in (
        ("gguf", "--dtype q4_0 needs n_embd to be a multiple of 32, and this run has 48; use --dtype float16"),
        ("huggingface", "--dtype q4_0 is quantized, which only --format gguf can store; add it"),
    ):
        result = invoke(*arguments, "--format", format)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1) and message in result.stderr
        assert not (tmp_path / "out").exists()


def test_other_models_and_tokenizers_are_one_line(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs gguf: pip install 'folio-lm[gguf]'")
    tiny = make_build(tmp_path / "tiny")
    for name, message in (
        ("modern", "llama.cpp cannot compute arch=modern, only gpt2; export this run with --format huggingface"),
        ("gpt2", "--format gguf needs a tokenizer that divides text as GPT-2's does, or one that SentencePiece"),
    ):
        config = write_config(tmp_path / f"{name}.py", tiny, arch=name, max_steps=1, warmup_steps=0)
        assert invoke("train.py", config).returncode == 0
        result = invoke("export.py", tmp_path / name, "--output", tmp_path / "out", "--format", "gguf")
        assert result.returncode in (1, 2) and result.stderr.count("\n") == 1 and message in result.stderr
        assert not (tmp_path / "out").exists()
    assert "nanochat" not in gguf.MODEL_ARCH_NAMES.values()  # if it is there, arch=modern may be exported


def test_missing_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(tmp_path / "run.py", make_build(tmp_path / "tiny"), max_steps=1, warmup_steps=0)
    assert invoke("train.py", config).returncode == 0
    monkeypatch.setitem(sys.modules, "gguf", None)
    result = invoke("export.py", tmp_path / "run", "--output", tmp_path / "out", "--format", "gguf")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "--format gguf needs the library gguf; install it with pip install 'folio-lm[gguf]'" in result.stderr
