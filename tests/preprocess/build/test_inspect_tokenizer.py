"""Inspection of a build's tokenizer, and of any tokenizer on a corpus."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from preprocess.build.inspect_tokenizer import inspect_build, inspect_by_name
from preprocess.build.plan import make_plan
from preprocess.errors import FolioError
from preprocess.progress import Progress
from preprocess.recipes.schema import Recipe
from preprocess.shards.format import Build
from preprocess.shards.replaced import ReplacedError
from preprocess.tokenizers.inspect import Figures
from tests.conftest import VERSE
from tests.helpers.memory import measure_peak_bytes


def test_inspect_build_counts_the_validation_documents(build_text: Callable[..., Build]) -> None:
    build = build_text(VERSE * 40, document="passage", passage_characters=100)
    figures = inspect_build(build, 10**6)["unknown"]
    split = build.manifest.splits["val"]
    assert figures["documents"] == split.documents and figures["text_bytes"] == split.text_bytes
    assert inspect_build(build, 3)["unknown"]["documents"] == 3


def test_inspect_by_name_uses_any_tokenizer_on_the_corpus(
    cache: Path, text_recipe: Callable[..., tuple[Recipe, Path]]
) -> None:
    recipe, path = text_recipe(VERSE * 40, document="passage", passage_characters=100)
    plan = make_plan(recipe, path, Progress(quiet=True))
    assert inspect_by_name("gpt2", plan, 5)["unknown"]["documents"] == 5
    figures = inspect_by_name("byte", plan, 10**6)["unknown"]
    assert figures["tokens"] == figures["text_bytes"] == len(VERSE.encode()) * 40


def test_inspect_build_rejects_id_outside_the_vocabulary(build_text: Callable[..., Build]) -> None:
    build = build_text()
    with open(build.folder / "val-00000.bin", "r+b") as file:
        file.write(b"\xff\xff")
    with pytest.raises(FolioError, match="holds id 65535, but its vocabulary ends at 256"):
        inspect_build(build, 10)


def test_inspect_build_rejects_a_build_that_was_replaced(build_text: Callable[..., Build]) -> None:
    build = build_text()
    build_text(VERSE * 20, replace=True)
    with pytest.raises(ReplacedError, match="was replaced or deleted while it was read"):
        inspect_build(build, 10)


def test_inspect_build_keeps_only_the_texts_that_it_measures(
    build_text: Callable[..., Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Because of the emoji, a Python string takes four bytes per character.
    documents = [f"{i:02}\U0001f600 " + "ab " * 60_000 for i in range(40)]
    build = build_text("\n".join(documents), document="line", split="exact", tokenizer="byte", val_fraction=0.9)
    for module in ("preprocess.tokenizers.inspect", "preprocess.build.inspect_tokenizer"):
        monkeypatch.setattr(f"{module}.MAX_CHARACTERS", 100_000)
        monkeypatch.setattr(f"{module}.MAX_BYTES", 400_000)
    measured: list[dict[str, Figures]] = []
    peak = measure_peak_bytes(lambda: measured.append(inspect_build(build, 36)))
    figures = measured[0]["unknown"]
    assert (figures["documents"], figures["text_bytes"]) == (3, 3 * 100_003)  # four would have more than 400,000
    assert peak < 55_000_000  # 69 MB if all 36 documents are kept
