"""Beginning with the weights of another run or of a Hugging Face folder: the same logits, and every id keeps its meaning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from preprocess.errors import FolioError, MisuseError
from tests.helpers.runs import (
    AUTHOR_ID,
    EOT_ID,
    SPECIAL_TOKENS,
    TINY,
    VOCAB_SIZE,
    invoke,
    losses,
    make_build,
    write_config,
)
from train.config import Config
from train.data.builds import Builds, open_builds
from train.model import make_model
from train.model.base import LanguageModel
from train.run.init_from import initialize

NUM_ORDINARY = EOT_ID + 1  # of the tokenizer: its alphabet and the end of text
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 32}
Initialize = Callable[..., LanguageModel]


def config_of(**settings: object) -> Config:
    return Config(**({"data": "x", "out_dir": "y"} | TINY | settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    return open_builds(str(make_build(tmp_path_factory.mktemp("builds") / "tiny")))


@pytest.fixture(scope="module")
def reference() -> Any:
    """A small random GPT-2 of Hugging Face's."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(5)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**SIZES, n_positions=16, vocab_size=NUM_ORDINARY, initializer_range=0.3)
    )
    with torch.no_grad():  # as after training: biases and norms that are not 0 and 1
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model.eval()


@pytest.fixture
def folder(reference: Any, tmp_path: Path) -> Path:
    reference.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture
def initialized(builds: Builds) -> Initialize:
    """A new model with the weights of `source`; what it warned of is in `warned`, if that is given."""

    def make(
        source: Path, *, builds: Builds = builds, warned: list[str] | None = None, **settings: object
    ) -> LanguageModel:
        config = config_of(init_from=str(source), **settings)
        torch.manual_seed(0)
        model = make_model(config, builds.vocab_size)
        initialize(model, config, builds, warn=[].append if warned is None else warned.append)
        return model.eval()

    return make


@torch.no_grad()
def logits_of(model: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    """(B, T, ordinary ids)"""
    return model.logits(model.features(ids))[..., :NUM_ORDINARY]


def random_ids(length: int = 16) -> torch.Tensor:
    return torch.randint(NUM_ORDINARY, (3, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same(model: LanguageModel, reference: Any, *, length: int = 16) -> None:
    torch.testing.assert_close(
        logits_of(model, random_ids(length)), reference(random_ids(length)).logits, atol=1e-5, rtol=0
    )


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_logits_are_those_of_transformers(folder: Path, reference: Any, initialized: Initialize) -> None:
    warned: list[str] = []
    assert_same(initialized(folder, warned=warned), reference)
    assert len(warned) == 1 and "its ids are taken to be those of tiny's tokenizer" in warned[0]


def test_names_without_prefix_masks_and_the_tied_head(folder: Path, reference: Any, initialized: Initialize) -> None:
    """As in the first gpt2 files."""
    path = folder / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    masks = {f"h.{n}.attn.{name}": torch.ones(1, 1, 16, 16) for n in range(2) for name in ("bias", "masked_bias")}
    save_file(tensors | masks | {"lm_head.weight": tensors["wte.weight"].clone()}, path)
    assert_same(initialized(folder), reference)


def test_weights_in_several_files(reference: Any, tmp_path: Path, initialized: Initialize) -> None:
    reference.save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2
    assert_same(initialized(tmp_path / "hf"), reference)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_widen(folder: Path, initialized: Initialize, dtype: torch.dtype) -> None:
    path = folder / "model.safetensors"
    narrow = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    save_file(narrow, path)
    model = initialized(folder)
    assert torch.equal(model.state_dict()["ln_f.weight"], narrow["transformer.ln_f.weight"].float())


def test_a_shorter_block_takes_the_first_positions(folder: Path, reference: Any, initialized: Initialize) -> None:
    model = initialized(folder, block_size=8)
    assert model.state_dict()["wpe.weight"].shape == (8, 32)
    assert_same(model, reference, length=8)


def test_new_ids_become_the_mean_and_padding_stays(folder: Path, reference: Any, initialized: Initialize) -> None:
    weight = initialized(folder).state_dict()["wte.weight"]
    theirs = reference.transformer.wte.weight.detach()
    torch.manual_seed(0)
    drawn = make_model(config_of(), VOCAB_SIZE).state_dict()["wte.weight"]
    assert torch.equal(weight[:NUM_ORDINARY], theirs)
    assert (AUTHOR_ID, VOCAB_SIZE) == (NUM_ORDINARY, NUM_ORDINARY + 2)
    torch.testing.assert_close(weight[NUM_ORDINARY:VOCAB_SIZE], theirs.mean(dim=0).expand(2, -1))
    assert torch.equal(weight[VOCAB_SIZE:], drawn[VOCAB_SIZE:])


def test_rows_beyond_the_tokenizers_are_not_authors(
    tmp_path: Path, reference: Any, folder: Path, initialized: Initialize
) -> None:
    """A vocabulary that its makers padded holds rows that stand for nothing."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["transformer.wte.weight"] = torch.cat([tensors["transformer.wte.weight"], torch.full((4, 32), 1e3)])
    save_file(tensors, path)
    assert initialized(folder).state_dict()["wte.weight"][:VOCAB_SIZE].abs().max() < 100


def test_control_tokens_of_a_tokenizer_json_are_known_by_their_text(
    folder: Path, reference: Any, initialized: Initialize
) -> None:
    added = [
        {"id": 3, "content": "<year_2025>"},
        {"id": EOT_ID, "content": "<|endoftext|>"},
        {"id": 10**6, "content": "<author_Anna_Akimova>"},
    ]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": {}}))
    weight, theirs = initialized(folder).state_dict()["wte.weight"], reference.transformer.wte.weight.detach()
    assert torch.equal(weight[SPECIAL_TOKENS["<year_2025>"]], theirs[3])
    assert torch.equal(weight[EOT_ID], theirs[EOT_ID])
    torch.testing.assert_close(weight[AUTHOR_ID], torch.cat([theirs, theirs[3:4]]).mean(dim=0))


FOREIGN = {
    "model_type": "llama", "activation_function": "relu", "layer_norm_epsilon": 1e-6, "scale_attn_weights": False,
    "scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False, "add_cross_attention": True, "n_inner": 100,
}  # fmt: skip


@pytest.mark.parametrize("key", FOREIGN)
def test_what_our_gpt2_does_not_do_is_named(folder: Path, initialized: Initialize, key: str) -> None:
    change_json(folder / "config.json", **{key: FOREIGN[key]})
    with pytest.raises(MisuseError, match=f"{key} {FOREIGN[key]!r} where Folio's GPT-2 has"):
        initialized(folder)


def test_all_that_the_settings_must_say_is_in_one_line(folder: Path, initialized: Initialize) -> None:
    with pytest.raises(MisuseError) as error:
        initialized(folder, arch="modern", n_layer=3, n_head=4, n_embd=64, block_size=17)
    assert str(error.value).endswith("set --arch=gpt2 --n_layer=2 --n_head=2 --n_embd=32 --block_size=16")


def test_a_pickle_is_refused(folder: Path, initialized: Initialize) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(MisuseError, match="pickle.*safe_serialization=True"):
        initialized(folder)


def test_a_vocabulary_that_is_too_small_is_refused(folder: Path, initialized: Initialize) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"transformer.wte.weight": tensors["transformer.wte.weight"][:20].clone()}, path)
    with pytest.raises(MisuseError, match=f"has 20 ids, {NUM_ORDINARY - 20} too few for the tokenizer of tiny"):
        initialized(folder)


def _drop_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.bias"]
    save_file(tensors, folder / "model.safetensors")


def _change_weight(folder: Path, name: str, tensor: torch.Tensor) -> None:
    save_file(load_file(folder / "model.safetensors") | {name: tensor}, folder / "model.safetensors")


def _index(folder: Path, names: Any) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (_drop_weight, "has nothing for h.1.mlp.c_fc.bias, its config.json asks for (128,)"),
        (
            lambda f: _change_weight(f, "transformer.h.7.ln_1.bias", torch.zeros(32)),
            "has (32,) for h.7.ln_1.bias, its config.json asks for nothing",
        ),
        (lambda f: _change_weight(f, "transformer.wpe.weight", torch.zeros(16, 31)), "has (16, 31) for wpe.weight"),
        (lambda f: _change_weight(f, "transformer.wte.weight", torch.tensor(1.0)), "for wte.weight"),
        (lambda f: _change_weight(f, "transformer.wpe.weight", torch.tensor(1.0)), "for wpe.weight"),
        (lambda f: _change_weight(f, "ln_f.bias", torch.zeros(32)), "holds ln_f.bias a second time"),
        (
            lambda f: _change_weight(f, "transformer.ln_f.bias", torch.full((32,), torch.nan)),
            "numbers in ln_f.bias that are not finite",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"no tensors"), "is no safetensors file"),
        (
            lambda f: (f / "model.safetensors").unlink(),
            "has neither model.safetensors nor model.safetensors.index.json",
        ),
        (
            lambda f: _index(f, {"wte.weight": "../model.safetensors"}),
            "names no files, or none that are .safetensors in its own folder",
        ),
        (
            lambda f: _index(f, {"wte.weight": "/etc/x.safetensors"}),
            "names no files, or none that are .safetensors in its own folder",
        ),
        (
            lambda f: _index(f, {"wte.weight": "weights.bin"}),
            "names no files, or none that are .safetensors in its own folder",
        ),
        (lambda f: _index(f, {"wte.weight": ["a"]}), "names no files"),
        (lambda f: _index(f, {}), "names no files"),
        (lambda f: _index(f, {"wte.weight": "model-1.safetensors"}), "model-1.safetensors is missing, which"),
        (lambda f: change_json(f / "config.json", n_layer="2"), "has n_layer '2', wanted a whole number from 1"),
        (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "is not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "is list, wanted an object"),
        (lambda f: (f / "tokenizer.json").write_text('{"added_tokens": 3}'), "are no list of tokens"),
        (
            lambda f: (f / "tokenizer.json").write_text('{"added_tokens": [{"id": "x", "content": "y"}]}'),
            "without text or id",
        ),
    ],
)
def test_damage_is_one_line(
    folder: Path, initialized: Initialize, damage: Callable[[Path], object], complaint: str
) -> None:
    damage(folder)
    with pytest.raises(FolioError) as error:
        initialized(folder)
    assert complaint in str(error.value) and "\n" not in str(error.value)
    assert not isinstance(error.value, MisuseError)


def test_what_is_no_source(tmp_path: Path, initialized: Initialize) -> None:
    with pytest.raises(MisuseError, match="is no checkpoint, no run that has one and no Hugging Face folder"):
        initialized(tmp_path / "nothing")


@pytest.fixture(scope="module", params=["gpt2", "modern"])
def source_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose build names two authors."""
    folder = tmp_path_factory.mktemp("source")
    special_tokens = {"<|endoftext|>": EOT_ID, "<author_Anna>": AUTHOR_ID, "<author_Boris>": AUTHOR_ID + 1}
    config = write_config(
        folder / "run.py", make_build(folder / "two", special_tokens=special_tokens), arch=request.param, max_steps=12
    )
    assert invoke("train.py", config).returncode == 0
    return folder / "run"


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "step-00000012" / "model.safetensors")


def arch_of(run: Path) -> str:
    return str(json.loads((run / "settings.json").read_text())["arch"])


def test_authors_of_another_run_keep_their_rows(source_run: Path, tmp_path: Path, initialized: Initialize) -> None:
    names = ["<author_Vera>", "<author_Boris>", "<author_Gleb>", "<author_Anna>"]
    special_tokens = {"<|endoftext|>": EOT_ID} | {name: AUTHOR_ID + i for i, name in enumerate(names)}
    builds = open_builds(str(make_build(tmp_path / "four", special_tokens=special_tokens, vocab_size=EOT_ID + 5)))
    warned: list[str] = []
    model = initialized(source_run, builds=builds, warned=warned, arch=arch_of(source_run))
    theirs = weights_of(source_run)
    assert warned == []
    for name in {"wte.weight", "lm_head.weight"} & theirs.keys():
        weight, known = model.state_dict()[name], theirs[name][:VOCAB_SIZE]
        assert torch.equal(weight[: EOT_ID + 1], known[: EOT_ID + 1])
        assert torch.equal(weight[special_tokens["<author_Boris>"]], known[AUTHOR_ID + 1])
        assert torch.equal(weight[special_tokens["<author_Anna>"]], known[AUTHOR_ID])
        for new in ("<author_Vera>", "<author_Gleb>"):
            torch.testing.assert_close(weight[special_tokens[new]], known.mean(dim=0))
    assert all(
        torch.equal(model.state_dict()[name], tensor) for name, tensor in theirs.items() if name.startswith("h.")
    )


def test_an_end_of_text_that_the_source_has_not_takes_no_authors_row(tmp_path: Path, initialized: Initialize) -> None:
    """Without one, the alphabet is followed by authors: an id's number says nothing of its meaning."""
    special_tokens = {"<author_Anna>": EOT_ID, "<author_Boris>": AUTHOR_ID, "<author_Vera>": AUTHOR_ID + 1}
    config = write_config(
        tmp_path / "run.py", make_build(tmp_path / "no-eot", special_tokens=special_tokens, eot_id=None), max_steps=12
    )
    assert invoke("train.py", config).returncode == 0
    special_tokens = {"<|endoftext|>": EOT_ID, "<author_Anna>": AUTHOR_ID, "<year_2025>": AUTHOR_ID + 1}
    builds = open_builds(str(make_build(tmp_path / "eot", special_tokens=special_tokens)))
    weight, theirs = (
        initialized(tmp_path / "run", builds=builds).state_dict()["wte.weight"],
        weights_of(tmp_path / "run")["wte.weight"],
    )
    assert torch.equal(weight[AUTHOR_ID], theirs[EOT_ID])
    torch.testing.assert_close(weight[EOT_ID], theirs[: EOT_ID + 1].mean(dim=0))


def test_a_run_must_fit(source_run: Path, tmp_path: Path, initialized: Initialize) -> None:
    arch = arch_of(source_run)
    other = "modern" if arch == "gpt2" else "gpt2"
    with pytest.raises(MisuseError) as error:
        initialized(source_run, arch=other, n_layer=1)
    assert str(error.value).endswith(f"set --arch={arch} --n_layer=2")
    builds = open_builds(str(make_build(tmp_path / "bytes", tokenizer={"kind": "byte", "files": {}, "settings": {}})))
    with pytest.raises(MisuseError, match="was trained with another tokenizer than that of bytes"):
        initialized(source_run, builds=builds, arch=arch)


def test_only_learned_positions_end(source_run: Path, initialized: Initialize) -> None:
    if arch_of(source_run) == "modern":
        assert initialized(source_run, arch="modern", block_size=32).block_size == 32
    else:
        with pytest.raises(MisuseError, match="set --block_size=16"):
            initialized(source_run, block_size=32)


def test_a_run_begins_with_the_loss_that_its_source_ended_with(source_run: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.py", source_run.parent / "two", arch=arch_of(source_run), max_steps=6)
    result = invoke("train.py", config, f"--init_from={source_run}")
    assert result.returncode == 0, result.stderr
    val_losses = [
        [row["val_loss"] for row in losses(run) if "val_loss" in row] for run in (source_run, tmp_path / "run")
    ]
    assert val_losses[1][0] == pytest.approx(val_losses[0][-1], abs=1e-6)
    assert val_losses[1][0] < val_losses[0][0] - 0.1


def test_a_lone_checkpoint_needs_what_its_run_kept(source_run: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(source_run / "checkpoints" / "step-00000012", tmp_path / "elsewhere" / "checkpoint")
    config = write_config(tmp_path / "run.py", source_run.parent / "two", arch=arch_of(source_run), max_steps=6)
    result = invoke("train.py", config, f"--init_from={alone}")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"{tmp_path / 'build' / 'manifest.json'} is missing" in result.stderr
    assert not (tmp_path / "run" / "settings.json").exists()
