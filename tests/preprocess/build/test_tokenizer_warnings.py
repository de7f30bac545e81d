"""What builds, estimates and streams say about a tokenizer that loses text or lacks an end of text."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from preprocess.build.estimate import estimate_build, format_estimate
from preprocess.build.plan import make_plan
from preprocess.build.stats import format_stats
from preprocess.errors import MisuseError
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.format import Build
from preprocess.stream import TokenStream
from tests.helpers.file_builds import QUIET, build_files, read_stats, read_texts
from tests.preprocess.stream.helpers import open_files
from tests.preprocess.tokenizers.helpers import ADDED_TOKEN, make_word_file

pytest.importorskip("tokenizers")

TEXTS = [f"abc {i} cab" for i in range(40)]
LOST = Counter("".join(map(str, range(40))))
KNOWN = "abc "


def write(tmp_path: Path, data: bytes) -> dict[str, Any]:
    """Write a tokenizer and a text, and return the settings that read them line by line."""
    (tmp_path / "tokenizer.json").write_bytes(data)
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    return {"tokenizer": str(tmp_path / "tokenizer.json"), "document": "line"}


def test_lost_characters_are_counted_and_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = write(tmp_path, make_word_file(KNOWN))
    build = build_files(tmp_path, tmp_path / "a.txt", **settings)
    total = sum(map(len, TEXTS))
    assert read_stats(build)["lost_characters"] == {
        "characters": LOST.total(), "of": total, "by_character": dict(sorted(LOST.items())),
    }  # fmt: skip
    assert f"the tokenizer loses {LOST.total()} of {total} characters" in capsys.readouterr().err
    lines = format_stats((build.folder / "stats.json").read_bytes())
    assert any(
        line.startswith(f"the tokenizer lost {LOST.total()} of {total} characters, most often '1'") for line in lines
    )


def test_partitions_change_no_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = write(tmp_path, make_word_file(KNOWN))
    whole = build_files(tmp_path, tmp_path / "a.txt", name="whole", **settings)
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 50)
    parts = build_files(tmp_path, tmp_path / "a.txt", name="parts", **settings)
    assert whole.build_id == parts.build_id


def test_a_second_build_in_the_same_process_counts_from_zero(tmp_path: Path) -> None:
    settings = write(tmp_path, make_word_file(KNOWN))
    for _ in range(2):
        build = build_files(tmp_path, tmp_path / "a.txt", **settings)
        assert read_stats(build)["lost_characters"]["characters"] == LOST.total()


def test_nothing_is_said_about_a_tokenizer_that_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = write(tmp_path, make_word_file(KNOWN + "0123456789"))
    build = build_files(tmp_path, tmp_path / "a.txt", **settings)
    assert "lost_characters" not in read_stats(build) and "loses" not in capsys.readouterr().err
    assert sorted(read_texts(build)) == sorted(TEXTS)


def test_estimate_reports_lost_characters(tmp_path: Path) -> None:
    settings = write(tmp_path, make_word_file(KNOWN))
    recipe = load_recipe(None, inputs=(str(tmp_path / "a.txt"),), **settings)
    estimate = estimate_build(make_plan(recipe, None, QUIET), 1000, workers=1)
    assert estimate["lost_characters"] == {"characters": LOST.total(), "of": sum(map(len, TEXTS))}
    assert any(line.startswith(f"lost        {LOST.total()} of") for line in format_estimate(estimate))


def test_stream_logs_lost_characters_once(tmp_path: Path) -> None:
    settings = write(tmp_path, make_word_file(KNOWN))
    lines: list[str] = []
    corpus = open_files(tmp_path / "a.txt", log=lines.append, **settings)
    list(TokenStream(corpus, block_size=4, epochs=3))
    assert sum("the tokenizer loses" in line for line in lines) == 1


def test_end_of_text_is_required_only_if_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = write(tmp_path, make_word_file(KNOWN + "0123456789", end=None))
    message = "has no end-of-text token"
    with pytest.raises(MisuseError, match=message):
        build_files(tmp_path, tmp_path / "a.txt", eot="append", **settings)
    with pytest.raises(MisuseError, match=message):
        open_files(tmp_path / "a.txt", eot="append", **settings)
    assert message not in capsys.readouterr().err
    build = build_files(tmp_path, tmp_path / "a.txt", **settings)
    assert capsys.readouterr().err.count(message) == 1
    confirmed = build_files(tmp_path, tmp_path / "a.txt", name="y", eot="none", **settings)
    assert message not in capsys.readouterr().err and confirmed.build_id == build.build_id
    assert build.manifest.recipe["eot"] == "none" and build.manifest.eot_id is None
    lines: list[str] = []
    open_files(tmp_path / "a.txt", log=lines.append, **settings)
    assert sum(message in line for line in lines) == 1


def test_added_words_are_tokens_of_a_build(tmp_path: Path) -> None:
    added = [{**ADDED_TOKEN, "id": 15, "content": "cab"}]
    data = make_word_file(
        KNOWN + "0123456789", added_tokens=[{**ADDED_TOKEN, "id": 0, "content": "</s>", "special": True}, *added]
    )
    data = data.replace(b"<|endoftext|>", b"</s>")
    build: Build = build_files(tmp_path, tmp_path / "a.txt", **write(tmp_path, data))
    ids = build.document("train", 0).tolist()
    assert ids.count(15) == 1 and "cab" not in build.manifest.special_tokens
    assert sorted(read_texts(build)) == sorted(TEXTS)
