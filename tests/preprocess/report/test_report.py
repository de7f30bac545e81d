"""`preprocess report`: the page of a build."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from preprocess.cli.main import main
from preprocess.errors import FolioError
from preprocess.pages.render import render_page
from preprocess.report import count_tokens as module
from preprocess.report.count_tokens import compute_divergence, count_tokens, share_of_new_tokens
from preprocess.report.describe import describe_page
from preprocess.shards.format import SPLITS, Build
from tests.conftest import VERSE, assert_one_line

HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(2)> \u202eevil \x1b[31m 'q\" & Tom"


class PageParser(HTMLParser):
    """Collects the tags, the attributes, the texts and the cells of each table of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._table, self._in_cell = "", False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "table":
            self._table = dict(attrs)["id"] or ""
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self._in_cell = True
            self.tables[self._table][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.tables[self._table][-1][-1] += data.strip()


def render(build: Build) -> str:
    return render_page(describe_page(build), "preprocess.report", "build.html").decode()


@pytest.fixture
def build(build_text: Callable[..., Build]) -> Build:
    text = "".join(f"{HOSTILE} line {i} of {i % 7}:{' word' * (i % 50)}\n" for i in range(200))
    settings: dict[str, Any] = {
        "clean": (),
        "author": "<b>Ann</b>",
        "lang": "e<i>n",
        "filters": ("word_count:min_words=20",),
    }
    return build_text(text, document="line", split="exact", val_fraction=0.2, shard_tokens=3_000, **settings)


def test_numbers_are_those_of_the_build(build: Build) -> None:
    tables = PageParser(render(build)).tables
    stats = json.loads((build.folder / "stats.json").read_bytes())
    funnel = {row[0]: row[1] for row in tables["table-funnel"][1:]}
    assert funnel["read"] == "200" and int(funnel["kept"]) == stats["documents"]["kept"]
    assert int(funnel["by_filters"]) == stats["documents"]["by_filters"] > 0
    assert tables["table-splits"][1][:2] == ["train", str(stats["splits"]["train"]["documents"])]
    shards = [entry for split in SPLITS for entry in build.manifest.splits[split].shards]
    assert [row[0] for row in tables["table-shards"][1:]] == [entry.file for entry in shards] and len(shards) > 3
    assert [row[4] for row in tables["table-shards"][1:]] == [entry.sha256 for entry in shards]
    tokens = np.concatenate([shard.tokens for shard in build.shards("train")]).tolist()
    token_id, _, in_train, _ = tables["table-tokens"][1]
    assert int(in_train.replace(",", "")) == tokens.count(int(token_id)) == max(tokens.count(i) for i in set(tokens))
    settings = {row[0]: json.loads(row[1]) for row in tables["table-recipe"][1:] if len(row[1]) < 300}
    assert settings["document"] == "line" and settings["val_fraction"] == 0.2


def test_text_is_never_markup(build: Build) -> None:
    page = render(build)
    parser = PageParser(page)
    assert parser.tags.count("script") == 1 and not {"img", "b", "i", "iframe", "object"} & set(parser.tags)
    assert not [name for name, _ in parser.attributes if name.startswith("on")]
    assert "&lt;script&gt;alert(1)" in page and "&lt;b&gt;Ann&lt;/b&gt;" in page
    assert not {"\x1b", "\u202e"} & set(page)
    assert "\\x1b[31m" in page


def test_page_requests_nothing(build: Build) -> None:
    page = render(build)
    addresses = [value for name, value in PageParser(page).attributes if name in ("src", "href", "action", "srcset")]
    assert all(value.startswith("#") or value == "data:," for value in addresses)
    assert "default-src 'none'" in page and not re.search(r"@import|url\(", page)


def test_page_of_many_values_stays_small(build_text: Callable[..., Build]) -> None:
    text = "".join(f"{i} {chr(0x4E00 + i)} words\n" for i in range(4_000))
    page = render(build_text(text, document="line", split="exact"))
    assert len(page.encode()) < 2_000_000


def test_splits_that_differ_are_warned_about(build_text: Callable[..., Build]) -> None:
    text = VERSE * 900 + "".join(f"{i} {i * 7} " for i in range(9_000))
    page = describe_page(build_text(text, document="passage", val_fraction=0.3))
    assert any("differ from the training documents" in warning for warning in page.warnings)
    assert not describe_page(build_text(VERSE * 900, name="alike")).warnings
    without = describe_page(build_text(name="without", val_fraction=0))
    assert any("no validation documents" in warning for warning in without.warnings)


def test_divergence_is_that_of_the_definition() -> None:
    assert compute_divergence(np.array([1, 1]), np.array([5, 5])) == 0
    assert compute_divergence(np.array([3, 0]), np.array([0, 9])) == 1
    # Half of p is on the first of two ids, all of q: the entropy of the mean minus the mean entropy.
    expected = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)) - 0.5
    assert compute_divergence(np.array([1, 1]), np.array([2, 0])) == pytest.approx(expected)
    assert share_of_new_tokens(np.array([4, 0, 1]), np.array([3, 1, 0])) == 0.25
    assert share_of_new_tokens(np.array([4]), np.array([0])) == 0


def test_tokens_are_counted_in_chunks(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = count_tokens(build, "train")
    monkeypatch.setattr(module, "CHUNK_TOKENS", 7)
    assert (count_tokens(build, "train") == expected).all()
    assert expected.sum() == build.manifest.splits["train"].tokens


def test_command_writes_the_page_and_keeps_an_existing_file(build: Build, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    arguments = ["report", str(build.folder), "--output", str(path)]
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"path": str(path), "size_bytes": path.stat().st_size}
    before = path.read_bytes()
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 2 and "exists already; pass --replace" in again.stderr
    assert CliRunner().invoke(main, [*arguments, "--replace"]).exit_code == 0
    assert path.read_bytes() == before
    folder = CliRunner().invoke(main, ["report", str(build.folder), "--output", str(tmp_path)])
    assert folder.exit_code == 2 and "is not a regular file; remove it, or choose" in folder.stderr


def test_missing_folders_of_the_page_are_created_before_the_tokens_are_read(build: Build, tmp_path: Path) -> None:
    path, blocked = tmp_path / "new" / "deeper" / "page.html", tmp_path / "file" / "page.html"
    assert CliRunner().invoke(main, ["report", str(build.folder), "--output", str(path)]).exit_code == 0
    assert path.is_file()
    blocked.parent.write_text("not a folder")
    result = CliRunner().invoke(main, ["report", str(build.folder), "--output", str(blocked)])
    assert result.exit_code == 1 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_damaged_tokens_are_one_line(build: Build) -> None:
    path = build.folder / "train-00000.bin"
    ids = np.fromfile(path, "<u2")
    ids[5] = 65_535
    ids.tofile(path)
    with pytest.raises(FolioError, match="holds id 65535, but its vocabulary ends at") as caught:
        describe_page(build)
    assert_one_line(str(caught.value))
