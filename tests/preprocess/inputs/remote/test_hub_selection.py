"""Which files of a dataset a path means."""

from __future__ import annotations

from typing import Any

import pytest

from preprocess.errors import MisuseError
from preprocess.inputs.remote.hub_selection import select_files

WIKITEXT = [
    ".gitattributes", "README.md",
    *[f"{config}/{split}-00000-of-00001.parquet" for config in ("wikitext-103-raw-v1", "wikitext-2-raw-v1")
      for split in ("test", "train", "validation")],
]  # fmt: skip
STORIES = ["README.md", "TinyStories-train.txt", "all.tar.gz", "data/train-0.parquet", "data/validation-0.parquet"]
CARD = {
    "configs": [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/*/*"}]},
        {"config_name": "sample-10BT", "data_files": [{"split": "train", "path": ["sample/10BT/*"]}]},
        {"config_name": "two", "data_files": [{"split": "train", "path": "a/*"}, {"split": "test", "path": "b/*"}]},
        {"config_name": "text", "data_files": "*.txt"},
    ]
}
EDU = ["a/1.csv", "b/1.csv", "data/x/1.parquet", "notes.txt", "sample/10BT/000.parquet", "sample/10BT/001.parquet"]


@pytest.mark.parametrize(
    ("paths", "wanted", "found"),
    [
        (STORIES, "", STORIES[3:]),  # beside tables, other files are copies and descriptions
        (STORIES, "data", STORIES[3:]),
        (STORIES, "data/train", STORIES[3:4]),
        (STORIES, "validation", STORIES[4:]),
        (STORIES, "dev", STORIES[4:]),
        (STORIES, "README.md", ["README.md"]),
        (STORIES, "*.txt", ["TinyStories-train.txt"]),
        (STORIES, "**/*.parquet", STORIES[3:]),
        (STORIES, "*.parquet", []),
        (STORIES, "data/*", STORIES[3:]),
        (STORIES, "dat", []),
        (STORIES, "data/other", []),
        (WIKITEXT, "wikitext-103-raw-v1", WIKITEXT[2:5]),
        (WIKITEXT, "wikitext-103-raw-v1/validation", WIKITEXT[4:5]),
        (["a.txt", ".hidden/b.txt", "LICENSE", "README.md"], "", ["README.md", "a.txt"]),
    ],
)
def test_select_files_finds_files_folders_globs_and_splits(paths: list[str], wanted: str, found: list[str]) -> None:
    skipped = ["LICENSE"] if "LICENSE" in paths else []
    assert select_files(paths, wanted, "auto") == (found, skipped)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("", EDU[2:3]),
        ("default", EDU[2:3]),
        ("sample-10BT", EDU[4:]),
        ("sample-10BT/train", EDU[4:]),
        ("two", EDU[:2]),
        ("two/test", EDU[1:2]),
        ("two/validation", []),
        ("text", ["notes.txt"]),
    ],
)
def test_select_files_finds_configurations_of_the_card(wanted: str, found: list[str]) -> None:
    assert select_files(EDU, wanted, "auto", CARD) == (found, [])


def test_select_files_asks_for_a_configuration() -> None:
    with pytest.raises(MisuseError, match="it has several configurations; add one of them to the address: .*two"):
        select_files(EDU, "", "auto", {"configs": CARD["configs"][1:]})
    marked = [*CARD["configs"][1:3], {"config_name": "chosen", "default": True, "data_files": ["b/*"]}]
    assert select_files(EDU, "", "auto", {"configs": marked}) == (["b/1.csv"], [])


@pytest.mark.parametrize(
    "card",
    [
        None,
        1,
        {"configs": 1},
        {"configs": [1, {}, {"config_name": 1}, {"config_name": "x"}]},
        {"configs": [{"config_name": "x", "data_files": [1, {"split": [], "path": {}}]}]},
    ],
)
def test_select_files_ignores_a_card_of_another_form(card: Any) -> None:
    assert select_files(STORIES, "", "auto", card) == (STORIES[3:], [])


def test_select_files_reads_files_of_the_format_that_is_asked_for() -> None:
    assert select_files(["a.txt", "b.jsonl", "c"], "", "text") == (["a.txt", "c"], ["b.jsonl"])


@pytest.mark.parametrize(
    ("wanted", "skipped"),
    [
        ("", ["b/train.xyz", "b/valid.xyz", "x.xyz"]),
        ("b", ["b/train.xyz", "b/valid.xyz"]),
        ("b/train", ["b/train.xyz"]),
        ("b/*", []),
    ],
)
def test_select_files_names_the_skipped_files_of_a_folder(wanted: str, skipped: list[str]) -> None:
    paths = ["b/train.csv", "b/train.xyz", "b/valid.csv", "b/valid.xyz", "x.xyz", "LICENSE", ".hidden.xyz"]
    assert select_files(paths, wanted, "auto")[1] == skipped
