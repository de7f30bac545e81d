"""Other tools' files, read back as those tools read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from preprocess.build.inspect_tokenizer import inspect_build
from preprocess.errors import FolioError, MisuseError
from preprocess.exchange.nanogpt import export_nanogpt
from preprocess.exchange.text import export_text
from preprocess.shards.format import Build


def test_nanogpt_reads_all_shards_as_one_memmap(build_text: Callable[..., Build], tmp_path: Path) -> None:
    made = build_text(document="passage", passage_characters=100, shard_tokens=300)
    assert len(made.manifest["splits"]["train"]["shards"]) > 3
    export_nanogpt(made, tmp_path / "out", replace=False)
    for split in ("train", "val"):
        got = np.memmap(tmp_path / "out" / f"{split}.bin", dtype=np.uint16, mode="r")
        assert got.tolist() == [t for shard in made.shards(split) for t in shard.tokens.tolist()]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["train.bin", "val.bin"]


def test_files_that_are_there_stay(build_text: Callable[..., Build], tmp_path: Path) -> None:
    (tmp_path / "val.bin").write_text("mine")
    made = build_text()
    with pytest.raises(MisuseError, match=r"val\.bin is there already; pass --replace"):
        export_nanogpt(made, tmp_path, replace=False)
    assert (tmp_path / "val.bin").read_text() == "mine" and not (tmp_path / "train.bin").exists()
    export_nanogpt(made, tmp_path, replace=True)
    assert (tmp_path / "val.bin").stat().st_size == 2 * made.manifest["splits"]["val"]["tokens"]


def test_ids_that_need_more_than_16_bits_are_refused(build_text: Callable[..., Build], tmp_path: Path) -> None:
    made = build_text()
    made.manifest |= {"dtype": "<u4", "vocab_size": 70_000}
    with pytest.raises(MisuseError, match="has 70,000 ids, nanoGPT reads uint16"):
        export_nanogpt(made, tmp_path, replace=False)


def test_an_id_outside_the_vocabulary_is_told(build_text: Callable[..., Build], tmp_path: Path) -> None:
    made = build_text()
    with open(made.folder / "val-00000.bin", "r+b") as file:
        file.write(b"\xff\xff")
    with pytest.raises(FolioError, match="holds an id outside its vocabulary; check it with `preprocess verify`"):
        export_text(made, tmp_path / "out", by_language=False, replace=False)
    with pytest.raises(FolioError, match="holds an id outside its vocabulary"):
        inspect_build(made, 10)
