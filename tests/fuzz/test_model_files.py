"""Damaged files of a model that `init_from` names are refused in one line."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fuzz.harness import assert_no_failure, fuzz
from tests.fuzz.mutations import mutate_bytes, mutate_json
from tests.helpers.runs import make_build, make_config
from train.data.builds import open_builds
from train.model import make_model
from train.run.init_from import initialize

HEADER_SIZES = (0, 1, 1 << 20, 99_000_000, 1 << 30, 1 << 62, (1 << 64) - 1)
DTYPES = ("F64", "F16", "BF16", "I8", "U8", "BOOL", "I64", "F8_E4M3", "F4", "C64", "X", "", None, 3)


def write_model(folder: Path) -> None:
    """Write a GPT-2 model as transformers saves it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=16, vocab_size=29)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    added_tokens = [{"id": 28, "content": "<|endoftext|>"}]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added_tokens, "model": {}}))


def initialize_from(path: Path) -> None:
    """Start a run from the model that contains `path`."""
    builds = open_builds(str(path.parent.parent / "tiny"))
    config = make_config(init_from=str(path.parent))
    initialize(make_model(config, builds.vocab_size), config, builds, warn=list[str]().append)


def mutate_safetensors(data: bytes, random_: random.Random) -> bytes:
    """Change the header's size, a tensor's description, any other value of the header, or bytes."""
    if random_.random() < 0.3:
        return mutate_bytes(data, random_)
    size = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + size], data[8 + size :]
    if random_.random() < 0.15:
        return random_.choice((*HEADER_SIZES, size - 1, size + 1)).to_bytes(8, "little") + header + body
    if random_.random() < 0.6:
        value = json.loads(header)
        _change_tensor(value[random_.choice([name for name in value if name != "__metadata__"])], random_)
        header = json.dumps(value).encode()
    else:
        header = mutate_json(header, random_)
    return len(header).to_bytes(8, "little") + header + body


def _change_tensor(entry: dict[str, Any], random_: random.Random) -> None:
    begin, end = entry["data_offsets"]
    shape = entry["shape"]
    odd_shapes = ([], [0], [-1], [1 << 40], [1 << 63], [1 << 32, 1 << 32], [2.5], None, shape[::-1], [*shape, 1])
    odd_offsets = (
        [begin, end + 4], [begin - 4, end], [end, begin], [0, end - begin], [begin], [begin, end, end],
        [begin, 1 << 62], [-1, 5], None, ["0", "4"],
    )  # fmt: skip
    key, values = random_.choice([("dtype", DTYPES), ("shape", odd_shapes), ("data_offsets", odd_offsets)])
    entry[key] = random_.choice(values)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_damaged_models_are_refused_in_one_line(
    name: str, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    make_build(tmp_path / "tiny")
    write_model(tmp_path / "model")
    path = tmp_path / "model" / name
    mutate = mutate_safetensors if name == "model.safetensors" else mutate_json
    assert_no_failure(fuzz(initialize_from, path, [path.read_bytes()], mutate), record_property)
