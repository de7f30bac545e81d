"""`preprocess report A B`: the page of two builds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from preprocess.cli.main import main
from preprocess.shards.format import Build
from tests.preprocess.report.test_report import HOSTILE, PageParser


def make_builds(build_text: Callable[..., Build]) -> tuple[Build, Build]:
    lines = [f"{HOSTILE} line {i}:{' word' * (i % 50)}\n" for i in range(200)]
    settings = {"document": "line", "clean": (), "dedup": True}
    a = build_text("".join(lines), name="a", split="exact", val_fraction=0.2, **settings)
    text = "".join([*lines[20:], "only in b\n", lines[50], lines[60]])
    return a, build_text(text, name="b", split="exact", val_fraction=0.1, **settings)


@pytest.fixture
def page(build_text: Callable[..., Build], tmp_path: Path) -> str:
    a, b = make_builds(build_text)
    path = tmp_path / "page.html"
    result = CliRunner().invoke(main, ["report", str(a.folder), str(b.folder), "--output", str(path), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"path": str(path), "size_bytes": path.stat().st_size}
    return path.read_text("utf-8")


def test_builds_are_side_by_side(page: str) -> None:
    tables = PageParser(page).tables
    documents = {row[0]: int(row[1]) for row in tables["table-documents"][1:]}
    assert documents["only in a"] == 20 and documents["only in b"] == 1
    assert documents["in both, but in another split"] > 0
    header, *rows = tables["table-settings"]
    assert header == ["setting", "a", "b", "differs"]
    different = {row[0]: row[1:3] for row in rows if row[3]}
    assert different["recipe.val_fraction"] == ["0.2", "0.1"] and "recipe.dedup" not in different
    assert ["recipe.dedup", "true", "true", ""] in rows and not rows[-1][3] and rows[0][3]
    funnel = {row[0]: row[1:3] for row in tables["table-funnel"][1:]}
    assert funnel["read"] == ["200", "183"] and funnel["duplicates"] == ["0", "2"] and funnel["kept"] == ["200", "181"]
    lengths = tables["table-lengths-train"][1:]
    assert sum(int(row[1]) for row in lengths) == 160 and sum(int(row[2]) for row in lengths) == 163
    shares = [abs(float(row[2][:-1]) - float(row[3][:-1])) for row in tables["table-tokens"][1:]]
    assert shares[0] == max(shares) > 0


def test_text_of_examples_is_never_markup(page: str) -> None:
    parser = PageParser(page)
    assert parser.tags.count("script") == 1 and not {"img", "iframe"} & set(parser.tags)
    assert "&lt;script&gt;alert(1)" in page and "only in b" in page and not {"\x1b", "\u202e"} & set(page)


def test_builds_with_other_tokenizers_are_compared_without_tokens(
    build_text: Callable[..., Build], tmp_path: Path
) -> None:
    a, b = build_text(name="a"), build_text(name="b", tokenizer="char")
    path = tmp_path / "page.html"
    result = CliRunner().invoke(main, ["report", str(a.folder), str(b.folder), "--output", str(path)])
    assert result.exit_code == 0, result.output
    page = path.read_text("utf-8")
    assert "different vocabularies" in page and "table-tokens" not in PageParser(page).tables
