"""Export to nanoGPT, read back as nanoGPT reads it."""

from __future__ import annotations

import dataclasses
import json
import os
import pickletools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocess.errors import MisuseError
from preprocess.exchange.nanogpt import export_nanogpt
from preprocess.shards.format import Build
from tests.conftest import VERSE, assert_one_line
from tests.helpers.runs import small_disk

# The instructions of a pickle that make dicts, strings and integers, and nothing else.
PLAIN_OPCODES = {"MARK", "DICT", "SETITEM", "UNICODE", "INT", "PUT", "GET", "STOP"}
# The lines of nanoGPT's sample.py that read meta.pkl, applied to val.bin.
NANOGPT_CODE = """
import json, pickle, sys
import numpy as np
with open("meta.pkl", "rb") as f:
    meta = pickle.load(f)
stoi, itos = meta["stoi"], meta["itos"]
decode = lambda l: "".join([itos[i] for i in l])
print(json.dumps([meta["vocab_size"], list(itos.items()), list(stoi.items()), decode(np.fromfile("val.bin", "<u2"))]))
"""


def read_as_nanogpt(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the content of `meta.pkl`, and the text of `val.bin`."""
    assert {opcode.name for opcode, _, _ in pickletools.genops((folder / "meta.pkl").read_bytes())} <= PLAIN_OPCODES
    done = subprocess.run([sys.executable, "-c", NANOGPT_CODE], cwd=folder, capture_output=True, text=True, check=True)
    vocab_size, itos, stoi, text = json.loads(done.stdout)
    return {"vocab_size": vocab_size, "itos": dict(itos), "stoi": dict(stoi)}, text


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


def test_export_nanogpt_writes_the_vocabulary_of_characters(build_text: Callable[..., Build], tmp_path: Path) -> None:
    text = (VERSE + "naïve ключ\\u0041 \u2028 😀\n") * 30
    build = build_text(text, tokenizer="char", document="file", eot="none", clean=())
    paths = export_nanogpt(build, tmp_path / "out", replace=False)
    assert [path.name for path in paths] == ["train.bin", "val.bin", "meta.pkl"]
    meta, val = read_as_nanogpt(tmp_path / "out")
    characters = sorted(set(text))  # as nanoGPT's data/shakespeare_char/prepare.py does
    assert meta == {
        "vocab_size": len(characters),
        "itos": dict(enumerate(characters)),
        "stoi": {character: i for i, character in enumerate(characters)},
    }
    train = np.fromfile(tmp_path / "out" / "train.bin", "<u2")
    assert "".join(meta["itos"][i] for i in train.tolist()) + val == text


def test_export_nanogpt_vocabulary_has_control_tokens(build_text: Callable[..., Build], tmp_path: Path) -> None:
    build = build_text(tokenizer="char", document="passage", passage_characters=50, author="Ann Lee", year=1998)
    export_nanogpt(build, tmp_path / "out", replace=False)
    meta, val = read_as_nanogpt(tmp_path / "out")
    assert meta["vocab_size"] == build.vocab_size == len(meta["itos"]) == len(set(VERSE)) + 3
    assert list(meta["itos"].values())[-3:] == ["<|endoftext|>", "<author_Ann_Lee>", "<year_1998>"]
    assert meta["stoi"] == {text: i for i, text in meta["itos"].items()}
    first, *_ = val.split("<|endoftext|>")
    assert (
        first.startswith("<author_Ann_Lee><year_1998>") and first.removeprefix("<author_Ann_Lee><year_1998>") in VERSE
    )


def test_export_nanogpt_rejects_the_vocabulary_of_another_build(
    build_text: Callable[..., Build], tmp_path: Path
) -> None:
    export_nanogpt(build_text(tokenizer="char", name="characters"), tmp_path / "out", replace=False)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(
        MisuseError, match=r"meta\.pkl exists, and nanoGPT would use it as the vocabulary of own; delete"
    ):
        export_nanogpt(build_text(), tmp_path / "out", replace=True)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(
    "kind", ["file", "pipe", "link", "folder in the place of a file", "pipe in the place of a file"]
)
def test_export_rejects_anything_but_a_folder_of_files(
    build_text: Callable[..., Build], tmp_path: Path, kind: str
) -> None:
    build, output = build_text(), tmp_path / "out"
    if kind == "file":
        output.touch()
    elif kind == "pipe":
        os.mkfifo(output)
    elif kind == "link":
        output.symlink_to("nowhere")
    elif kind == "folder in the place of a file":
        (output / "val.bin").mkdir(parents=True)
    else:
        output.mkdir()
        os.mkfifo(output / "val.bin")
    with pytest.raises(MisuseError, match=r"is a file|not a folder|not a regular file") as caught:
        export_nanogpt(build, output, replace=True)
    assert_one_line(str(caught.value))
    assert not (output / "train.bin").exists()


def test_export_to_a_full_disk_keeps_the_old_files(build_text: Callable[..., Build], tmp_path: Path) -> None:
    small, large = build_text(name="small"), build_text(VERSE * 10_000, name="large")
    with small_disk(tmp_path / "disk") as disk:
        export_nanogpt(small, disk, replace=False)
        before = {path.name: path.read_bytes() for path in disk.iterdir()}
        with pytest.raises(OSError, match="No space left"):
            export_nanogpt(large, disk, replace=True)
        assert before == {path.name: path.read_bytes() for path in disk.iterdir()}
