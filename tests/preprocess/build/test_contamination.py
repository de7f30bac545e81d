"""Builds that remove or count the documents that contain evaluation items."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocess.build.build import build_tokenizer
from preprocess.build.estimate import choose_documents
from preprocess.build.plan import make_plan, plan_estimate
from preprocess.build.stats import format_stats
from preprocess.cli.main import main
from preprocess.errors import FolioError, MisuseError
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.format import Build
from preprocess.shards.verify import verify
from preprocess.stream import TokenStream
from tests.conftest import file_bytes
from tests.helpers.file_builds import read_stats, read_texts
from tests.preprocess.build.helpers import QUIET, run_build

NUM_DOCUMENTS = 120
ITEMS = [" ".join(f"e{i}w{k}" for k in range(20)) for i in range(12)]
CONTAMINATED = {**{i: [ITEMS[i]] for i in range(10)}, 40: [ITEMS[3]], 70: [ITEMS[3], ITEMS[4]]}


def make_texts() -> list[str]:
    """Return documents of which those in CONTAMINATED contain items, in upper case and with punctuation."""
    texts = []
    for number in range(NUM_DOCUMENTS):
        items = [", ".join(item.upper().split()[:16]) for item in CONTAMINATED.get(number, [])]
        texts.append(" ".join([f"document {number} has other words", *items, "at the end"]))
    return texts


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder with the documents in `a.jsonl` and the items in `items.txt`."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in make_texts()))
    (folder / "items.txt").write_text("\n".join([*ITEMS, "a short item"]) + "\n")
    return folder


def make_recipe(inputs: Path, **settings_: Any) -> Any:
    defaults = {"tokenizer": "byte", "decontaminate": (str(inputs / "items.txt"),)}
    return load_recipe(None, inputs=(str(inputs / "a.jsonl"),), **{**defaults, **settings_})


def make_build(inputs: Path, output_dir: Path, *, workers: int = 1, **settings_: Any) -> Build:
    run_build(make_recipe(inputs, **settings_), output_dir, workers=workers)
    build = Build(output_dir)
    assert list(verify(build)) == []
    return build


def test_contaminated_documents_are_dropped_and_reported(inputs: Path, tmp_path: Path) -> None:
    build = make_build(inputs, tmp_path / "x")
    assert set(read_texts(build)) == {text for i, text in enumerate(make_texts()) if i not in CONTAMINATED}
    stats = read_stats(build)
    counts = stats["documents"]
    assert (counts["read"], counts["contaminated"], counts["kept"]) == (NUM_DOCUMENTS, 12, NUM_DOCUMENTS - 12)
    found = stats["decontamination"]
    assert found["policy"] == "drop" and found["documents"] == 12 and "items_not_listed" not in found
    assert found["files"] == [{"name": "items.txt", "items": 13, "too_short": 1, "found": 10}]
    of_items = {item["item"]: item["documents"] for item in found["items"]}
    assert of_items == {**dict.fromkeys(range(10), 1), 3: 3, 4: 2} and list(of_items)[:2] == [3, 4]
    assert {(item["file"], item["ngrams"], item["of"]) for item in found["items"]} == {("items.txt", 4, 8)}
    lines = "\n".join(format_stats((build.folder / "stats.json").read_bytes()))
    assert "12 contaminated" in lines and "items.txt item 3: in 3 documents, 4 of its 8 n-grams" in lines
    assert "10 of 13 items found; 1 too short" in lines and "and 5 other items" in lines


def test_report_keeps_all_documents(inputs: Path, tmp_path: Path) -> None:
    build = make_build(inputs, tmp_path / "x", decontaminate_policy="report")
    assert set(read_texts(build)) == set(make_texts())
    stats = read_stats(build)
    assert stats["documents"]["read"] == stats["documents"]["kept"] == NUM_DOCUMENTS
    dropped = read_stats(make_build(inputs, tmp_path / "y"))["decontamination"]
    assert stats["decontamination"] == {**dropped, "policy": "report"}


@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_workers_and_partitions_change_no_byte(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: str
) -> None:
    expected = file_bytes(make_build(inputs, tmp_path / "expected/x", tokenizer=tokenizer).folder)
    for number, (workers, partition_bytes) in enumerate([(2, 3000), (5, 1000), (1, 400)]):
        monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", partition_bytes)
        build = make_build(inputs, tmp_path / str(number) / "x", workers=workers, tokenizer=tokenizer)
        assert file_bytes(build.folder) == expected


def test_interrupted_build_continues_with_the_same_bytes(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = file_bytes(make_build(inputs, tmp_path / "expected/x").folder)
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 1000)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("preprocess.build.build.dedup_and_split", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_build(inputs, tmp_path / "x")
    found = sorted((tmp_path / ".x.work").glob("*/part-*.overlaps"))
    assert len(found) > 5
    found[3].write_bytes(b"\0" * found[3].stat().st_size)  # as after a power failure
    assert file_bytes(make_build(inputs, tmp_path / "x").folder) == expected


def test_files_are_stored_by_name_and_content_and_not_by_folder(inputs: Path, tmp_path: Path) -> None:
    first = make_build(inputs, tmp_path / "x")
    recipe = first.manifest.recipe
    assert recipe["decontaminate"] == ["items.txt"] and len(recipe["decontaminate_sha256"][0]) == 64
    assert str(tmp_path) not in json.dumps(recipe)
    moved = tmp_path / "other"
    moved.mkdir()
    (inputs / "items.txt").rename(moved / "items.txt")
    paths = (str(moved / "items.txt"),)
    assert not run_build(make_recipe(inputs, decontaminate=paths), tmp_path / "x")  # the same build
    (moved / "items.txt").write_text(ITEMS[0])
    run_build(make_recipe(inputs, decontaminate=paths), tmp_path / "x", replace=True)
    assert read_stats(Build(tmp_path / "x"))["documents"]["contaminated"] == 1


def test_recipe_without_evaluation_items_stores_none_of_the_settings() -> None:
    recipe = load_recipe(None, inputs=("a.txt",)).resolved()
    assert not [name for name in recipe if name.startswith("decontaminate")]
    with pytest.raises(MisuseError, match="decontaminate_policy has no effect"):
        load_recipe(None, inputs=("a.txt",), decontaminate_policy="report")


def test_paths_in_a_recipe_file_are_relative_to_it(inputs: Path) -> None:
    (inputs / "mine.toml").write_text('inputs = ["a.jsonl"]\ndecontaminate = ["items.txt"]\n')
    assert load_recipe(str(inputs / "mine.toml")).decontaminate == (str(inputs / "items.txt"),)


def test_changed_file_stops_the_build(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from preprocess.build import build as module

    dedup_and_split = module.dedup_and_split

    def change_file(*arguments: Any) -> Any:
        (inputs / "items.txt").write_text("other")
        return dedup_and_split(*arguments)

    monkeypatch.setattr(module, "dedup_and_split", change_file)
    with pytest.raises(FolioError, match=r"items\.txt .*changed"):
        make_build(inputs, tmp_path / "x")


def test_all_documents_contaminated_is_an_error(inputs: Path, tmp_path: Path) -> None:
    (inputs / "items.txt").write_text("\n".join(make_texts()))
    with pytest.raises(
        FolioError, match="no document is left of own: 120 documents read; 120 contaminated; .*contains an"
    ):
        make_build(inputs, tmp_path / "x")


def test_items_that_are_all_too_short_are_warned_about(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (inputs / "items.txt").write_text("yes\nno\n")
    make_build(inputs, tmp_path / "x")
    assert (
        "--decontaminate items.txt has no effect: all of its 2 items have fewer than 8 words" in capsys.readouterr().err
    )


def test_only_the_most_frequent_items_are_listed(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.build.contamination.MAX_LISTED_ITEMS", 2)
    found = read_stats(make_build(inputs, tmp_path / "x"))["decontamination"]
    assert [item["item"] for item in found["items"]] == [3, 4] and found["items_not_listed"] == 8


def test_estimate_tokenizer_and_stream_leave_contaminated_documents_out(inputs: Path, tmp_path: Path) -> None:
    kept = {text for i, text in enumerate(make_texts()) if i not in CONTAMINATED}
    texts, _ = choose_documents(plan_estimate(make_recipe(inputs), None, QUIET), 1000)
    assert set(texts.to_pylist()) == kept
    recipe = make_recipe(inputs, tokenizer="char")
    arguments: dict[str, Any] = {"source": None, "replace": False, "progress": QUIET, "workers": 1}
    alphabet = build_tokenizer(recipe, tmp_path / "char", **arguments)
    others = build_tokenizer(load_recipe(recipe, decontaminate=()), tmp_path / "others", **arguments)
    assert alphabet.vocab_size < others.vocab_size  # upper case is in the items only
    stream_recipe = dataclasses.replace(make_recipe(inputs), dedup=False, split="threshold", val_fraction=0.0)
    for recipe, is_found in ((stream_recipe, False), (dataclasses.replace(stream_recipe, decontaminate=()), True)):
        ids = np.concatenate([*TokenStream(recipe, block_size=8, epochs=1)])
        assert len(ids) > 1000 and (ord("E") in ids) == is_found


def test_stream_rejects_a_report(inputs: Path) -> None:
    with pytest.raises(MisuseError, match="a stream writes no report about evaluation items; set decontaminate_policy"):
        TokenStream(make_recipe(inputs, decontaminate_policy="report"), block_size=4)


def test_chats_are_searched_without_their_marks(inputs: Path, tmp_path: Path) -> None:
    words = ITEMS[0].split()
    chats = [[{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": "yes"}] for i in range(20)]
    chats[7][1]["content"] = " ".join(words[:15])
    (inputs / "a.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    build = make_build(inputs, tmp_path / "x", chat_columns="messages")
    assert read_stats(build)["documents"]["contaminated"] == 1


def test_command_prints_what_was_found(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--input", str(inputs / "a.jsonl"), "--tokenizer", "byte", "--output", str(tmp_path / "x")]
    items = str(inputs / "items.txt")
    with pytest.raises(SystemExit, match="0"):
        main(["build", *arguments, "--decontaminate", items, "--decontaminate", items])
    out = capsys.readouterr().out
    assert "evaluation  dropped 12 documents with evaluation items" in out
    assert out.count("items.txt: 10 of 13 items found") == 2


@pytest.mark.parametrize("plan", [make_plan, plan_estimate])
def test_a_missing_evaluation_file_is_found_before_the_inputs_are_read(plan: Any, inputs: Path) -> None:
    recipe = make_recipe(inputs, decontaminate=(str(inputs / "nope.txt"),))
    recipe = dataclasses.replace(recipe, inputs=(str(inputs / "missing"),))
    with pytest.raises(MisuseError, match=r"--decontaminate .*nope.txt does not exist"):
        plan(recipe, None, QUIET)
