"""`preprocess filter try`, --filter and --quality on the command line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.preprocess.cli.checks import check_error

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def corpus(tmp_path: Path) -> None:
    texts = ["one two", "three \x1b[31m four", "the words of this document are more than ten, it is long enough"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.mark.usefixtures("corpus")
def test_try_shows_dropped_documents_beside_kept_ones(preprocess: Run) -> None:
    done = preprocess("filter", "try", "word_count:min_words=5", "--input", "a.jsonl", "--clean", "none")
    assert done.returncode == 0, done.stderr
    assert "filter      word_count: read 3, dropped 2 (66.7%): too_few_words 2" in done.stdout
    assert "too_few_words 2: one two" in done.stdout and "1. the words of this document" in done.stdout
    assert "\x1b" not in done.stdout and "\\x1b[31m" in done.stdout
    done = preprocess("filter", "try", "--filter", "word_count", "--input", "a.jsonl", "--json", "--clean", "none")
    [entry] = json.loads(done.stdout)
    assert entry["dropped"] == {"too_few_words": 3, "too_many_words": 0} and "\x1b" not in done.stdout


@pytest.mark.usefixtures("corpus")
def test_a_build_prints_the_counts_of_filters(preprocess: Run, tmp_path: Path) -> None:
    arguments = ("--input", "a.jsonl", "--tokenizer", "byte", "--filter", "word_count:min_words=2", "--quality", "c4")
    done = preprocess("build", *arguments, "--filter", "word_count:min_words=1", "--quiet")
    check_error(done, 1, "no document is left of own: 3 documents read; 3 by filters")
    done = preprocess("build", *arguments[:4], "--filter", "word_count:min_words=3", "--quiet", "--val-fraction", "0")
    assert done.returncode == 0, done.stderr
    assert "  filter      word_count: read 3, dropped 1 (33.3%): too_few_words 1" in done.stdout
    manifest = json.loads((tmp_path / "shards/own/manifest.json").read_text())
    assert manifest["recipe"]["filters"] == ["word_count:max_words=100000,min_words=3"]
    again = preprocess("build", *arguments[:4], "--filter", "word_count:min_words=3", "--val-fraction", "0")
    assert "already built" in again.stdout


@pytest.mark.usefixtures("corpus")
def test_wrong_filters_end_with_status_2(preprocess: Run) -> None:
    check_error(preprocess("filter", "try", "--input", "a.jsonl"), 2, "no filter to try: name one, such as")
    check_error(preprocess("filter", "try", "word_cont", "--input", "a.jsonl"), 2, "did you mean 'word_count'?")
    check_error(preprocess("build", "--quality", "web", "--input", "a.jsonl"), 2, "no quality preset is called 'web'")
