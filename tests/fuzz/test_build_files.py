"""Damaged files of a build: each command and the trainer refuse them in one line."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from preprocess.build.build import build
from preprocess.build.stats import format_stats, read_stats
from preprocess.cli.builds import describe, summarize
from preprocess.exchange.text import export_text
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.files import readable_json, sha256_bytes
from preprocess.shards.format import Build, seal
from preprocess.shards.torch_dataset import Documents, ShuffledWindows, TokenWindows
from preprocess.shards.verify import verify_newest
from preprocess.tokenizers import load_tokenizer
from preprocess.tokenizers.decode_build import decode_documents
from preprocess.tokenizers.to_huggingface import make_huggingface_files
from tests.fuzz.harness import assert_no_failure, fuzz, run_all
from tests.fuzz.mutations import mutate_bytes, mutate_json
from tests.helpers.file_builds import QUIET
from tests.helpers.runs import make_build, make_config
from train.data.batches import TrainingData, ValidationData
from train.data.builds import open_builds


def use_build(path: Path) -> None:
    """Do with the build that contains `path` what the commands do, and read batches for training."""
    folder = path.parent
    opened, _ = verify_newest(folder)
    json.dumps(describe(opened))
    summarize(opened)
    manifest = opened.manifest
    run_all(
        [
            lambda: [text for _, text in decode_documents(opened, "train", load_tokenizer(folder, manifest))],
            lambda: make_huggingface_files(folder, manifest, model_max_length=8),
            lambda: export_text(opened, folder.parent / "text", by_language=True, authors=True, replace=True),
            lambda: [len(document) for document in Documents(folder)],
            lambda: len(TokenWindows(folder, block_size=16)[3]),
            lambda: next(iter(ShuffledWindows(folder, block_size=16))),
            lambda: _read_batches(folder, mask_documents=False),
            lambda: _read_batches(folder, mask_documents=True),
        ]
    )


def _read_batches(folder: Path, *, mask_documents: bool) -> None:
    config = make_config(mask_documents=mask_documents)
    builds = open_builds(str(folder))
    TrainingData(builds, config, device=torch.device("cpu")).batch(0, 64)
    validation = ValidationData(builds, config, device=torch.device("cpu"))
    validation.batch(np.arange(min(validation.num_windows, 9)))


def use_sealed_build(path: Path) -> None:
    """Give the damaged manifest a valid checksum, as someone who edits it on purpose would."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        # A value that cannot be written, such as half of a surrogate pair, remains with its old checksum.
        with contextlib.suppress(ValueError, RecursionError):
            path.write_bytes(readable_json(seal(value)))
    use_build(path)


def read_sealed_stats(path: Path) -> None:
    """Read a damaged stats.json whose hash the manifest contains."""
    manifest = path.with_name("manifest.json")
    value = json.loads(manifest.read_bytes())
    value["stats_sha256"] = sha256_bytes(path.read_bytes())
    manifest.write_bytes(readable_json(seal(value)))
    for line in format_stats(read_stats(Build(path.parent))):
        assert isinstance(line, str)


def mutate_ends(data: bytes, random_: random.Random) -> bytes:
    """Replace document ends by plausible and impossible ones, or damage bytes."""
    if random_.random() < 0.2:
        return mutate_bytes(data, random_)
    values = np.frombuffer(data, "<u8").copy()
    for _ in range(random_.choice((1, 1, 2, 4))):
        index = random_.randrange(len(values))
        end = int(values[index])
        values[index] = random_.choice(
            (0, 1, (end + 1) % (1 << 64), max(end - 1, 0), 1 << 40, 1 << 63, (1 << 64) - 1, int(values[-1]))
        )
    return values.tobytes()


def mutate_same_size(data: bytes, random_: random.Random) -> bytes:
    """Damage bytes and keep the size in most cases, so that the file is not refused for its size."""
    changed = mutate_bytes(data, random_)
    return changed if random_.random() < 0.1 else (changed + data)[: len(data)]


KINDS: dict[str, tuple[str, Any, Any]] = {
    "manifest": ("manifest.json", use_build, mutate_json),
    "sealed manifest": ("manifest.json", use_sealed_build, mutate_json),
    "ends": ("train-00000.ends", use_build, mutate_ends),
    "docs": ("train-00000.docs", use_build, mutate_same_size),
    "tokens": ("train-00000.bin", use_build, mutate_same_size),
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_builds_are_refused_in_one_line(
    kind: str, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    name, reader, mutate = KINDS[kind]
    path = make_build(tmp_path / "tiny") / name
    assert_no_failure(fuzz(reader, path, [path.read_bytes()], mutate), record_property)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_damaged_stats_are_refused_in_one_line(tmp_path: Path, record_property: Callable[[str, Any], None]) -> None:
    recipe = load_recipe("synthetic", num_pairs=20, tokenizer="byte")
    build(recipe, tmp_path / "real", name="real", replace=False, progress=QUIET)
    path = tmp_path / "real" / "stats.json"
    assert_no_failure(fuzz(read_sealed_stats, path, [path.read_bytes()], mutate_json), record_property)


def test_the_undamaged_build_is_used_in_every_way(tmp_path: Path) -> None:
    path = make_build(tmp_path / "tiny") / "manifest.json"
    use_build(path)
    before = path.read_bytes()
    use_sealed_build(path)
    assert path.read_bytes() == before
    shutil.rmtree(tmp_path / "text")
