"""`preprocess diff`: documents by the hash of their text, and settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from preprocess.build import buckets, diff, shuffle
from preprocess.cli.main import main
from preprocess.shards.format import Build

LINES = [f"line {i}\n" for i in range(60)]


def run_diff(a: Build, b: Build, *options: str) -> Result:
    return CliRunner().invoke(main, ["diff", str(a.folder), str(b.folder), *options])


@pytest.fixture
def make(build_text: Callable[..., Build], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Build]:
    """Return a function that makes a build of lines, whose hashes are sorted in many buckets and pieces."""

    def make(lines: list[str], **settings: Any) -> Build:
        return build_text("".join(lines), split="exact", document="line", **settings)

    return make


def test_diff_of_equal_builds_has_the_status_0(make: Callable[..., Build]) -> None:
    a, b = make(LINES), make(LINES, name="b")
    result = run_diff(a, b)
    assert result.exit_code == 0 and "have the same documents and settings" in result.stdout
    assert json.loads(run_diff(a, b, "--json").stdout)["is_equal"]


def test_diff_lists_texts_of_one_build_only(make: Callable[..., Build], monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = make(LINES), make([*LINES[3:], "new\n"], name="b")
    monkeypatch.setattr(buckets, "ROWS_PER_BUCKET", 4)
    monkeypatch.setattr(shuffle, "BUFFER_ROWS", 7)
    monkeypatch.setattr(diff, "CHUNK_DOCUMENTS", 5)
    result = run_diff(a, b, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert not found["is_equal"]
    hashes = [{split: build.docs(split)["hash"].tobytes() for split in ("train", "val")} for build in (a, b)]
    for key, number, num_texts in (("only_in_a", 0, 3), ("only_in_b", 1, 1)):
        assert found[key]["num_texts"] == len(found[key]["examples"]) == num_texts
        for place in found[key]["examples"]:
            first = 16 * place["document"]
            digest = hashes[number][place["split"]][first : first + 16]
            assert place["build"] == number and digest not in b"".join(hashes[1 - number].values())
    assert found["settings"]["sources"]


def test_diff_lists_texts_that_moved(make: Callable[..., Build]) -> None:
    a, b = make(LINES), make(LINES, name="b", seed=1)
    found = json.loads(run_diff(a, b, "--json").stdout)
    sides = [{bytes(h): split for split in ("train", "val") for h in build.docs(split)["hash"]} for build in (a, b)]
    expected = sum(sides[0][text] != sides[1][text] for text in sides[0])
    assert expected and found["in_other_split"]["num_texts"] == expected
    assert found["only_in_a"]["num_texts"] == found["only_in_b"]["num_texts"] == 0
    assert found["settings"]["recipe.seed"] == [0, 1]
    text = run_diff(a, b).stdout
    assert f"{expected} texts moved to another split, such as" in text and "recipe.seed: 0 -> 1" in text


def test_diff_lists_other_tokenizers(make: Callable[..., Build]) -> None:
    a, b = make(LINES), make(LINES, name="b", tokenizer="gpt2")
    result = run_diff(a, b)
    assert result.exit_code == 1 and 'tokenizer: "byte" -> "gpt2"' in result.stdout
    assert "vocab_size: 257 -> 50257" in result.stdout and "only in" not in result.stdout


def test_diff_counts_a_text_once_however_often_it_occurs(make: Callable[..., Build]) -> None:
    a, b = make(LINES + LINES[:5] * 9, dedup=False), make(LINES, name="b")
    found = json.loads(run_diff(a, b, "--json").stdout)
    assert found["only_in_a"]["num_texts"] == found["only_in_b"]["num_texts"] == 0


def test_diff_of_a_missing_build_has_the_status_2(make: Callable[..., Build], tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["diff", str(make(LINES).folder), str(tmp_path / "none")])
    assert result.exit_code == 2 and "no build" in result.stderr


def test_rows_of_texts_have_every_document(make: Callable[..., Build]) -> None:
    a = make(LINES)
    rows = np.concatenate(list(diff._iter_texts((a, a))))
    assert len(rows) == 120 and sorted(np.unique(rows["sides"]).tolist()) == [1, 2, 4, 8]
