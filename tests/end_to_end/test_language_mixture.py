"""Text in several languages becomes one build for each language, and training mixes these by weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from preprocess.cli.main import main
from train.config import Config
from train.data.batches import TrainingData
from train.data.builds import open_builds

pytest.importorskip("py3langid", reason="needs py3langid: pip install 'folio-lm[languages]'")

SENTENCES = {
    "en": "The committee met on Tuesday to discuss the new budget for schools and libraries in the town.",
    "ru": "Комитет собрался во вторник, чтобы обсудить новый бюджет школ и библиотек в этом городе.",
    "el": "Η επιτροπή συνεδρίασε την Τρίτη για να συζητήσει τον νέο προϋπολογισμό των σχολείων.",
}
NUM_DOCUMENTS = {"en": 300, "ru": 30, "el": 20}  # most of the text is English
WEIGHTS = {"en": 0.25, "ru": 0.25, "el": 0.5}
LETTERS = {"en": "abcdefghijklmnopqrstuvwxyz", "ru": "абвгдежзиклмнопрстуфхцчшыья", "el": "αβγδεζηθικλμνξοπρστυφχψω"}
BLOCK_SIZE = 64


def find_language(ids: list[int]) -> str:
    """Return the language that most letters of a window of the tokenizer `byte` belong to."""
    text = bytes(each for each in ids if each < 256).decode(errors="ignore").lower()
    return max(LETTERS, key=lambda code: sum(character in LETTERS[code] for character in text))


def test_builds_of_each_language_are_mixed_by_their_weights_and_not_by_their_sizes(tmp_path: Path) -> None:
    texts = [
        f"{SENTENCES[code]} ({number})" for number in range(300) for code in SENTENCES if number < NUM_DOCUMENTS[code]
    ]
    source = tmp_path / "pages.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    for code, count in NUM_DOCUMENTS.items():
        options = [
            "--languages",
            code,
            "--tokenizer",
            "byte",
            "--output",
            str(tmp_path / code),
            "--val-fraction",
            "0.1",
        ]
        done = CliRunner().invoke(main, ["build", "--input", str(source), *options])
        assert done.exit_code == 0, done.output
        stats = json.loads((tmp_path / code / "stats.json").read_bytes())
        assert {name: of_language["documents"] for name, of_language in stats["languages"].items()} == {code: count}

    builds = open_builds(",".join(f"{tmp_path / code}:{weight}" for code, weight in WEIGHTS.items()))
    config = Config(data="x", out_dir="y", block_size=BLOCK_SIZE, batch_size=4)
    windows = TrainingData(builds, config, device=torch.device("cpu")).batch(0, 2000)[0].tolist()
    found = [find_language(window) for window in windows]
    assert {code: round(found.count(code) / len(found), 1) for code in WEIGHTS} == pytest.approx(WEIGHTS, abs=0.051)
