"""Export to nanoGPT, read back as nanoGPT reads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from preprocess.errors import MisuseError
from preprocess.exchange.nanogpt import export_nanogpt
from preprocess.shards.format import Build


def test_export_nanogpt_concatenates_the_shards(build_text: Callable[..., Build], tmp_path: Path) -> None:
    build = build_text(document="passage", passage_characters=100, shard_tokens=300)
    assert len(build.manifest.splits["train"].shards) > 3
    export_nanogpt(build, tmp_path / "out", replace=False)
    for split in ("train", "val"):
        exported = np.memmap(tmp_path / "out" / f"{split}.bin", dtype=np.uint16, mode="r")
        assert exported.tolist() == [t for shard in build.shards(split) for t in shard.tokens.tolist()]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["train.bin", "val.bin"]


def test_export_nanogpt_keeps_existing_files_without_replace(build_text: Callable[..., Build], tmp_path: Path) -> None:
    (tmp_path / "val.bin").write_text("mine")
    build = build_text()
    with pytest.raises(MisuseError, match=r"val\.bin exists already; pass --replace"):
        export_nanogpt(build, tmp_path, replace=False)
    assert (tmp_path / "val.bin").read_text() == "mine" and not (tmp_path / "train.bin").exists()
    export_nanogpt(build, tmp_path, replace=True)
    assert (tmp_path / "val.bin").stat().st_size == 2 * build.manifest.splits["val"].tokens


def test_export_nanogpt_rejects_ids_of_more_than_16_bits(build_text: Callable[..., Build], tmp_path: Path) -> None:
    build = build_text()
    build.manifest = dataclasses.replace(build.manifest, dtype="<u4", vocab_size=70_000)
    with pytest.raises(MisuseError, match="has 70,000 ids, but nanoGPT reads uint16"):
        export_nanogpt(build, tmp_path, replace=False)
