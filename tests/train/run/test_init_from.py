"""Weights of another run or of a Hugging Face folder: same logits, and ids keep their meaning."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from preprocess.errors import FolioError, MisuseError
from tests.conftest import assert_one_line
from tests.helpers.runs import (
    AUTHOR_ID,
    EOT_ID,
    SPECIAL_TOKENS,
    VOCAB_SIZE,
    invoke,
    make_build,
    make_config,
    read_val_losses,
    write_config,
)
from train.data.builds import Builds, open_builds
from train.model import make_model
from train.model.base import LanguageModel
from train.run.huggingface_folder import read_sizes
from train.run.init_from import initialize

NUM_ORDINARY = EOT_ID + 1  # ids that are not control tokens of authors and years: the alphabet and the end of text
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 32}
Initialize = Callable[..., LanguageModel]


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    return open_builds(str(make_build(tmp_path_factory.mktemp("builds") / "tiny")))


@pytest.fixture(scope="module")
def reference() -> Any:
    """A small random GPT-2 of the library transformers."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(5)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**SIZES, n_positions=16, vocab_size=NUM_ORDINARY, initializer_range=0.3)
    )
    with torch.no_grad():  # biases and norms that are not 0 and 1, as after training
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model.eval()


@pytest.fixture
def hf_folder(reference: Any, tmp_path: Path) -> Path:
    reference.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture
def initialized(builds: Builds) -> Initialize:
    """Return a function that returns a new model with the weights of `source`.

    It appends warnings to `warnings`.
    """

    def make(
        source: Path, *, builds: Builds = builds, warnings: list[str] | None = None, **settings: object
    ) -> LanguageModel:
        config = make_config(init_from=str(source), **settings)
        torch.manual_seed(0)
        model = make_model(config, builds.vocab_size)
        initialize(model, config, builds, warn=[].append if warnings is None else warnings.append)
        return model.eval()

    return make


@torch.no_grad()
def compute_logits(model: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of the ordinary ids, (B, T, NUM_ORDINARY)."""
    return model.logits(model.features(ids))[..., :NUM_ORDINARY]


def random_ids(length: int = 16) -> torch.Tensor:
    return torch.randint(NUM_ORDINARY, (3, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same_logits(model: LanguageModel, reference: Any, *, length: int = 16) -> None:
    torch.testing.assert_close(
        compute_logits(model, random_ids(length)), reference(random_ids(length)).logits, atol=1e-5, rtol=0
    )


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_logits_equal_those_of_transformers(hf_folder: Path, reference: Any, initialized: Initialize) -> None:
    warnings: list[str] = []
    assert_same_logits(initialized(hf_folder, warnings=warnings), reference)
    assert len(warnings) == 1 and "its ids are assumed to be those of the tokenizer of tiny" in warnings[0]


def test_old_files_with_masks_and_a_tied_head_are_read(
    hf_folder: Path, reference: Any, initialized: Initialize
) -> None:
    """The first files of gpt2 have names without prefix, masks, and a copy of the embedding."""
    path = hf_folder / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    masks = {f"h.{n}.attn.{name}": torch.ones(1, 1, 16, 16) for n in range(2) for name in ("bias", "masked_bias")}
    save_file(tensors | masks | {"lm_head.weight": tensors["wte.weight"].clone()}, path)
    assert_same_logits(initialized(hf_folder), reference)


def test_weights_in_several_files_are_read(reference: Any, tmp_path: Path, initialized: Initialize) -> None:
    reference.save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2
    assert_same_logits(initialized(tmp_path / "hf"), reference)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_become_float32(hf_folder: Path, initialized: Initialize, dtype: torch.dtype) -> None:
    path = hf_folder / "model.safetensors"
    narrow = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    save_file(narrow, path)
    model = initialized(hf_folder)
    assert torch.equal(model.state_dict()["ln_f.weight"], narrow["transformer.ln_f.weight"].float())


def test_shorter_block_takes_the_first_positions(hf_folder: Path, reference: Any, initialized: Initialize) -> None:
    model = initialized(hf_folder, block_size=8)
    assert model.state_dict()["wpe.weight"].shape == (8, 32)
    assert_same_logits(model, reference, length=8)


def test_rows_of_new_ids_are_the_mean_and_padding_is_unchanged(
    hf_folder: Path, reference: Any, initialized: Initialize
) -> None:
    weight = initialized(hf_folder).state_dict()["wte.weight"]
    reference_weight = reference.transformer.wte.weight.detach()
    torch.manual_seed(0)
    random_weight = make_model(make_config(), VOCAB_SIZE).state_dict()["wte.weight"]
    assert torch.equal(weight[:NUM_ORDINARY], reference_weight)
    assert (AUTHOR_ID, VOCAB_SIZE) == (NUM_ORDINARY, NUM_ORDINARY + 2)
    torch.testing.assert_close(weight[NUM_ORDINARY:VOCAB_SIZE], reference_weight.mean(dim=0).expand(2, -1))
    assert torch.equal(weight[VOCAB_SIZE:], random_weight[VOCAB_SIZE:])


def test_padded_rows_of_the_source_are_not_used(
    tmp_path: Path, reference: Any, hf_folder: Path, initialized: Initialize
) -> None:
    """A vocabulary that was padded by its authors has rows without a meaning."""
    path = hf_folder / "model.safetensors"
    tensors = load_file(path)
    tensors["transformer.wte.weight"] = torch.cat([tensors["transformer.wte.weight"], torch.full((4, 32), 1e3)])
    save_file(tensors, path)
    assert initialized(hf_folder).state_dict()["wte.weight"][:VOCAB_SIZE].abs().max() < 100


def test_control_tokens_of_tokenizer_json_are_matched_by_text(
    hf_folder: Path, reference: Any, initialized: Initialize
) -> None:
    added = [
        {"id": 3, "content": "<year_2025>"},
        {"id": EOT_ID, "content": "<|endoftext|>"},
        {"id": 10**6, "content": "<author_Anna_Akimova>"},
    ]
    (hf_folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": {}}))
    weight = initialized(hf_folder).state_dict()["wte.weight"]
    reference_weight = reference.transformer.wte.weight.detach()
    assert torch.equal(weight[SPECIAL_TOKENS["<year_2025>"]], reference_weight[3])
    assert torch.equal(weight[EOT_ID], reference_weight[EOT_ID])
    # The mean of the rows that are taken; row 3 is taken twice.
    expected = torch.cat([reference_weight, reference_weight[3:4]]).mean(dim=0)
    torch.testing.assert_close(weight[AUTHOR_ID], expected)


FOREIGN = {
    "model_type": "llama", "activation_function": "relu", "layer_norm_epsilon": 1e-6, "scale_attn_weights": False,
    "scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False, "add_cross_attention": True, "n_inner": 100,
}  # fmt: skip


@pytest.mark.parametrize("key", FOREIGN)
def test_model_that_is_not_gpt2_is_rejected(hf_folder: Path, initialized: Initialize, key: str) -> None:
    change_json(hf_folder / "config.json", **{key: FOREIGN[key]})
    with pytest.raises(MisuseError, match=f"has {key} {FOREIGN[key]!r}, (not|expected) .*; name "):
        initialized(hf_folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.bool])
def test_weights_that_are_not_floating_point_numbers_are_rejected(
    hf_folder: Path, initialized: Initialize, dtype: torch.dtype
) -> None:
    path = hf_folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"transformer.wpe.weight": tensors["transformer.wpe.weight"].to(dtype)}, path)
    with pytest.raises(MisuseError, match=r"has wpe\.weight as \w+, which is quantized or not a weight, .*; name "):
        initialized(hf_folder)


def test_a_quantized_model_is_rejected(hf_folder: Path, initialized: Initialize) -> None:
    change_json(hf_folder / "config.json", quantization_config={"quant_method": "fp8"})
    with pytest.raises(MisuseError, match="has quantized weights; name a model that differs from gpt2 only in size"):
        initialized(hf_folder)


def test_settings_that_do_not_fit_are_listed_in_one_line(hf_folder: Path, initialized: Initialize) -> None:
    with pytest.raises(MisuseError) as error:
        initialized(hf_folder, arch="modern", n_layer=3, n_head=4, n_embd=64, block_size=17)
    assert str(error.value).endswith("set --arch=gpt2 --n_layer=2 --n_head=2 --n_embd=32 --block_size=16")


def test_pickle_is_rejected(hf_folder: Path, initialized: Initialize) -> None:
    (hf_folder / "model.safetensors").rename(hf_folder / "pytorch_model.bin")
    with pytest.raises(MisuseError, match="pickle.*safe_serialization=True"):
        initialized(hf_folder)


def test_vocabulary_that_is_too_small_is_rejected(hf_folder: Path, initialized: Initialize) -> None:
    path = hf_folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"transformer.wte.weight": tensors["transformer.wte.weight"][:20].clone()}, path)
    with pytest.raises(MisuseError, match=f"has 20 ids, {NUM_ORDINARY - 20} too few for the tokenizer of tiny"):
        initialized(hf_folder)


def _remove_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.bias"]
    save_file(tensors, folder / "model.safetensors")


def _change_weight(folder: Path, name: str, tensor: torch.Tensor) -> None:
    save_file(load_file(folder / "model.safetensors") | {name: tensor}, folder / "model.safetensors")


def _write_header(folder: Path, header: bytes, size: int | None = None) -> None:
    size = len(header) if size is None else size
    (folder / "model.safetensors").write_bytes(size.to_bytes(8, "little") + header)


def _write_index(folder: Path, names: Any) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove_weight, "has nothing for h.1.mlp.c_fc.bias, but its config.json needs (128,)"),
        (
            lambda f: _change_weight(f, "transformer.h.7.ln_1.bias", torch.zeros(32)),
            "has (32,) for h.7.ln_1.bias, but its config.json needs nothing",
        ),
        (lambda f: _change_weight(f, "transformer.wpe.weight", torch.zeros(16, 31)), "has (16, 31) for wpe.weight"),
        (lambda f: _change_weight(f, "transformer.wte.weight", torch.tensor(1.0)), "for wte.weight"),
        (lambda f: _change_weight(f, "transformer.wpe.weight", torch.tensor(1.0)), "for wpe.weight"),
        (lambda f: _change_weight(f, "ln_f.bias", torch.zeros(32)), "contains ln_f.bias a second time"),
        (
            lambda f: _change_weight(f, "transformer.ln_f.bias", torch.full((32,), torch.nan)),
            "numbers in ln_f.bias that are not finite",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"no tensors"), "is not a safetensors file"),
        (
            lambda f: (f / "model.safetensors").unlink(),
            "has neither model.safetensors nor model.safetensors.index.json",
        ),
        (
            lambda f: _write_index(f, {"wte.weight": "../model.safetensors"}),
            "must name .safetensors files in its folder",
        ),
        (
            lambda f: _write_index(f, {"wte.weight": "/etc/x.safetensors"}),
            "must name .safetensors files in its folder",
        ),
        (
            lambda f: _write_index(f, {"wte.weight": "weights.bin"}),
            "must name .safetensors files in its folder",
        ),
        (lambda f: _write_index(f, {"wte.weight": ["a"]}), "must name .safetensors files in its folder"),
        (lambda f: _write_index(f, {}), "must name .safetensors files in its folder"),
        (lambda f: _write_index(f, {"wte.weight": "model-1.safetensors"}), "model-1.safetensors is missing, which"),
        (
            lambda f: change_json(f / "config.json", n_layer="2"),
            "n_layer must be a whole number from 1 to 1,048,576, got '2'",
        ),
        (lambda f: change_json(f / "config.json", n_embd=10**400), "n_embd must be a whole number from 1 to 1,048,576"),
        (
            lambda f: _change_weight(f, "transformer." + "x" * 5000, torch.zeros(3)),
            "has (3,) for " + "x" * 80 + "…, but its config.json needs nothing",
        ),
        (lambda f: _write_header(f, b'{"a": {"dtype": "\\u0007' + b"x" * 9000 + b'"}}'), "is not a safetensors file"),
        (lambda f: _write_header(f, b"{}", size=1 << 62), "is not a safetensors file"),
        (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "is not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "must be a JSON object, got list"),
        (lambda f: (f / "tokenizer.json").write_text('{"added_tokens": 3}'), "added_tokens is not a list of tokens"),
        (
            lambda f: (f / "tokenizer.json").write_text('{"added_tokens": [{"id": "x", "content": "y"}]}'),
            "an added token has no text or no id",
        ),
    ],
)
def test_damaged_huggingface_folder_is_one_line(
    hf_folder: Path, initialized: Initialize, damage: Callable[[Path], object], message: str
) -> None:
    damage(hf_folder)
    with pytest.raises(FolioError) as error:
        initialized(hf_folder)
    assert message in str(error.value)
    assert_one_line(str(error.value).replace(str(hf_folder), ""))
    assert not isinstance(error.value, MisuseError)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_named_pipe_is_not_read(hf_folder: Path, initialized: Initialize, name: str) -> None:
    (hf_folder / name).unlink(missing_ok=True)
    os.mkfifo(hf_folder / name)
    if name == "tokenizer.json":
        initialized(hf_folder)  # optional
    else:
        with pytest.raises(FolioError, match="has neither model.safetensors|a Hugging Face folder with"):
            initialized(hf_folder)


def test_folder_without_weights_is_rejected(tmp_path: Path, initialized: Initialize) -> None:
    with pytest.raises(
        MisuseError, match="init_from must name a checkpoint, a run that has one, a Hugging Face folder"
    ):
        initialized(tmp_path / "nothing")


@pytest.fixture(scope="module", params=["gpt2", "modern"])
def source_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a build with two authors."""
    folder = tmp_path_factory.mktemp("source")
    special_tokens = {"<|endoftext|>": EOT_ID, "<author_Anna>": AUTHOR_ID, "<author_Boris>": AUTHOR_ID + 1}
    config = write_config(
        folder / "run.py", make_build(folder / "two", special_tokens=special_tokens), arch=request.param, max_steps=12
    )
    assert invoke("train.py", config).returncode == 0
    return folder / "run"


def load_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "step-00000012" / "model.safetensors")


def read_arch(run: Path) -> str:
    return str(json.loads((run / "settings.json").read_text())["arch"])


def test_authors_of_another_run_keep_their_rows(source_run: Path, tmp_path: Path, initialized: Initialize) -> None:
    names = ["<author_Vera>", "<author_Boris>", "<author_Gleb>", "<author_Anna>"]
    special_tokens = {"<|endoftext|>": EOT_ID} | {name: AUTHOR_ID + i for i, name in enumerate(names)}
    builds = open_builds(str(make_build(tmp_path / "four", special_tokens=special_tokens, vocab_size=EOT_ID + 5)))
    warnings: list[str] = []
    model = initialized(source_run, builds=builds, warnings=warnings, arch=read_arch(source_run))
    source_weights = load_weights(source_run)
    assert warnings == []
    for name in {"wte.weight", "lm_head.weight"} & source_weights.keys():
        weight, known = model.state_dict()[name], source_weights[name][:VOCAB_SIZE]
        assert torch.equal(weight[: EOT_ID + 1], known[: EOT_ID + 1])
        assert torch.equal(weight[special_tokens["<author_Boris>"]], known[AUTHOR_ID + 1])
        assert torch.equal(weight[special_tokens["<author_Anna>"]], known[AUTHOR_ID])
        for new in ("<author_Vera>", "<author_Gleb>"):
            torch.testing.assert_close(weight[special_tokens[new]], known.mean(dim=0))
    assert all(
        torch.equal(model.state_dict()[name], tensor)
        for name, tensor in source_weights.items()
        if name.startswith("h.")
    )


def test_new_end_of_text_does_not_take_the_row_of_an_author(tmp_path: Path, initialized: Initialize) -> None:
    """Without an end of text, authors follow the alphabet: equal numbers do not mean equal tokens."""
    special_tokens = {"<author_Anna>": EOT_ID, "<author_Boris>": AUTHOR_ID, "<author_Vera>": AUTHOR_ID + 1}
    config = write_config(
        tmp_path / "run.py", make_build(tmp_path / "no-eot", special_tokens=special_tokens, eot_id=None), max_steps=12
    )
    assert invoke("train.py", config).returncode == 0
    special_tokens = {"<|endoftext|>": EOT_ID, "<author_Anna>": AUTHOR_ID, "<year_2025>": AUTHOR_ID + 1}
    builds = open_builds(str(make_build(tmp_path / "eot", special_tokens=special_tokens)))
    weight = initialized(tmp_path / "run", builds=builds).state_dict()["wte.weight"]
    source_weight = load_weights(tmp_path / "run")["wte.weight"]
    assert torch.equal(weight[AUTHOR_ID], source_weight[EOT_ID])
    torch.testing.assert_close(weight[EOT_ID], source_weight[: EOT_ID + 1].mean(dim=0))


def test_run_that_does_not_fit_is_rejected(source_run: Path, tmp_path: Path, initialized: Initialize) -> None:
    arch = read_arch(source_run)
    other = "modern" if arch == "gpt2" else "gpt2"
    with pytest.raises(MisuseError) as error:
        initialized(source_run, arch=other, n_layer=1)
    assert str(error.value).endswith(f"set --arch={arch} --n_layer=2")
    builds = open_builds(str(make_build(tmp_path / "bytes", tokenizer={"kind": "byte", "files": {}, "settings": {}})))
    with pytest.raises(MisuseError, match="was trained with another tokenizer than that of bytes"):
        initialized(source_run, builds=builds, arch=arch)


def test_longer_block_needs_rotary_positions(source_run: Path, initialized: Initialize) -> None:
    if read_arch(source_run) == "modern":
        assert initialized(source_run, arch="modern", block_size=32).block_size == 32
    else:
        with pytest.raises(MisuseError, match="set --block_size=16"):
            initialized(source_run, block_size=32)


def test_new_run_starts_with_the_last_loss_of_its_source(source_run: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.py", source_run.parent / "two", arch=read_arch(source_run), max_steps=6)
    result = invoke("train.py", config, f"--init_from={source_run}")
    assert result.returncode == 0, result.stderr
    source_losses, new_losses = (read_val_losses(run) for run in (source_run, tmp_path / "run"))
    assert new_losses[0] == pytest.approx(source_losses[12], abs=1e-6)
    assert new_losses[0] < source_losses[0] - 0.1


def test_checkpoint_outside_its_run_needs_the_folder_build(source_run: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(source_run / "checkpoints" / "step-00000012", tmp_path / "elsewhere" / "checkpoint")
    config = write_config(tmp_path / "run.py", source_run.parent / "two", arch=read_arch(source_run), max_steps=6)
    result = invoke("train.py", config, f"--init_from={alone}")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"{tmp_path / 'build' / 'manifest.json'} is missing" in result.stderr
    assert not (tmp_path / "run" / "settings.json").exists()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rope_theta": 500_000.0}, r"rope_theta 500000\.0, not 10000\.0"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling .*, not None"),
        ({"rms_norm_eps": 1e-3}, r"rms_norm_eps 0\.001, not at most 1e-05"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps 'x', not at most 1e-05"),
    ],
)
def test_a_nanochat_model_with_other_positions_or_norms_is_refused(
    tmp_path: Path, settings: dict[str, Any], expected: str
) -> None:
    valid = {"model_type": "nanochat", "rope_theta": 10_000, "rope_scaling": None, "rms_norm_eps": 1e-6}
    (tmp_path / "config.json").write_text(json.dumps(valid), encoding="utf-8")
    assert read_sizes(tmp_path)[0] == "modern"
    (tmp_path / "config.json").write_text(json.dumps(valid | settings), encoding="utf-8")
    with pytest.raises(MisuseError, match=expected):
        read_sizes(tmp_path)
