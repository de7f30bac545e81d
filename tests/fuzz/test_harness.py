"""The fuzz harness reports each kind of failure, and the mutations depend on the seed only."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from preprocess.errors import FolioError
from tests.fuzz import harness
from tests.fuzz.harness import fuzz
from tests.fuzz.mutations import mutate_bytes, mutate_json, mutate_json_lines


def read_and_obey(path: Path) -> None:
    """Behave as the content of the file says."""
    word = path.read_text()
    if word == "refuse":
        raise FolioError("one line")
    if word == "two lines":
        raise FolioError("one line\nand another")
    if word == "raise":
        raise KeyError(word)
    if word == "exit":
        os._exit(3)
    if word == "hang":
        time.sleep(60)
    if word == "memory":
        len(b"\1" * 1_600_000_000)


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("refuse", "refused"), ("two lines", "not one line"), ("raise", "traceback"), ("exit", "died"),
        ("hang", "hang"), ("memory", "memory"), ("fine", "accepted"),
    ],
)  # fmt: skip
def test_fuzz_reports_what_the_reader_does(
    word: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "NUM_MUTATIONS", 1)
    monkeypatch.setattr(harness, "MAX_SECONDS", 60)
    monkeypatch.setattr(harness, "TIMEOUT_S", 2.0 if word == "hang" else 60.0)
    outcome = fuzz(read_and_obey, tmp_path / "file", [b""], lambda data, random_: word.encode())
    assert outcome.counts == {kind: 1}
    assert len(outcome.failures) == (0 if kind in ("accepted", "refused") else 1)


@pytest.mark.parametrize(
    ("mutate", "data"),
    [
        (mutate_bytes, b"some bytes" * 20),
        (mutate_json, b'{"a": [1, 2.5, {"b": "text"}], "c": null}'),
        (mutate_json_lines, b'{"a": 1}\n{"a": 2}\n'),
    ],
)
def test_mutations_change_the_data_and_follow_the_seed(mutate: harness.Mutation, data: bytes) -> None:
    mutated = [mutate(data, random.Random(seed)) for seed in range(200)]
    assert mutated == [mutate(data, random.Random(seed)) for seed in range(200)]
    assert sum(one != data for one in mutated) > 150
    assert len(set(mutated)) > 100


def test_mutations_of_an_empty_file_are_possible() -> None:
    assert {mutate_bytes(b"", random.Random(seed)) for seed in range(50)} >= {b"", b"\xff"}
