"""Damaged recipe files and config files are refused in one line."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preprocess.recipes.catalog import load_recipe
from tests.fuzz.harness import assert_no_failure, fuzz
from tests.fuzz.mutations import mutate_bytes
from train.config import load_config

RECIPES = [path.read_bytes() for path in sorted(Path("preprocess/recipes").glob("*.toml"))]
CONFIGS = [
    b"""data = "tiny"
out_dir = "runs/x"
n_layer = 2  # a comment
learning_rate = 1e-3
max_steps = 24
warmup_steps = 2
""",
    b"""base = "../../configs/modern_recipe.py"
data = "a:1,b:2"
dropout = 0.1
mask_documents = True
max_steps = 400
""",
]
ODD_TOKENS = (
    b"9" * 5_000, b"1e999", b"nan", b"[" * 2_000, b"{" * 200, b".a" * 20_000, b'"""', b"\\ud800", b"\xff", b"=", b"()",
    b"0x10", b"1_000", b"None", b"true", b"-", b"import os", b"__import__('os')", b"lambda: 0", b"'a' * 10**9",
)  # fmt: skip


def mutate_tokens(data: bytes, random_: random.Random) -> bytes:
    """Replace the value of a line by an odd token, or damage bytes."""
    lines = data.split(b"\n")
    index = random_.randrange(len(lines))
    key, equals, value = lines[index].partition(b"=")
    if not equals or random_.random() < 0.3:
        return mutate_bytes(data, random_)
    token = random_.choice(ODD_TOKENS)
    lines[index] = random_.choice(
        (key + b"= " + token, key + b"=" + value + token, token + b"=" + value, lines[index] * 2)
    )
    return b"\n".join(lines)


def read_recipe(path: Path) -> None:
    load_recipe(str(path))


def read_config(path: Path) -> None:
    load_config(path, {})


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_load_recipe_refuses_damaged_files_in_one_line(
    tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    assert RECIPES
    assert_no_failure(fuzz(read_recipe, tmp_path / "recipe.toml", RECIPES, mutate_tokens), record_property)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_load_config_refuses_damaged_files_in_one_line(
    tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "modern_recipe.py").write_bytes(Path("configs/modern_recipe.py").read_bytes())
    path = tmp_path / "a" / "b" / "config.py"
    assert_no_failure(fuzz(read_config, path, CONFIGS, mutate_tokens), record_property)
