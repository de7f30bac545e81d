"""Publishing: builds that exist already, what may be replaced, locks, and interruptions."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest

from preprocess.build.prepared_corpus import PreparedCorpus
from preprocess.build.shard_layout import ShardLayout, lay_out_shards
from preprocess.errors import FolioError, MisuseError
from preprocess.recipes.catalog import load_recipe
from preprocess.recipes.schema import Recipe
from preprocess.shards.format import Build
from preprocess.shards.verify import verify
from tests.conftest import ROOT, VERSE, file_bytes
from tests.preprocess.build.helpers import list_leftovers, run_build

TextRecipe = Callable[..., tuple[Recipe, Path]]


def test_only_a_build_of_an_equal_recipe_is_already_built(text_recipe: TextRecipe, tmp_path: Path) -> None:
    recipe, path = text_recipe()
    output_dir = tmp_path / "shards/own"
    assert run_build(recipe, output_dir, source=path) is True
    before = file_bytes(output_dir)
    assert run_build(recipe, output_dir, source=path) is False
    other, path = text_recipe(tokenizer="char", val_fraction=0.2)
    with pytest.raises(MisuseError, match=r"holds another build \(other tokenizer, val_fraction\); pass --replace"):
        run_build(other, output_dir, source=path)
    assert file_bytes(output_dir) == before
    assert run_build(other, output_dir, source=path, replace=True) is True
    assert Build(output_dir).manifest.tokenizer.kind == "char" and list_leftovers(output_dir.parent) == []
    changed, path = text_recipe(VERSE * 41, tokenizer="char", val_fraction=0.2)
    with pytest.raises(MisuseError, match="other files"):
        run_build(changed, output_dir, source=path)


def test_synthetic_build_of_another_vocabulary_is_not_already_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("synthetic", num_pairs=50, tokenizer="byte")
    run_build(recipe, tmp_path / "x")
    monkeypatch.setattr("preprocess.inputs.find_inputs.read_vocabulary_file", lambda: b"another")
    with pytest.raises(MisuseError, match="other sources"):
        run_build(recipe, tmp_path / "x")


def test_damaged_build_is_not_already_built(text_recipe: TextRecipe, tmp_path: Path) -> None:
    recipe, path = text_recipe()
    output_dir = tmp_path / "shards/own"
    run_build(recipe, output_dir, source=path)
    os.truncate(output_dir / "train-00000.bin", 10)
    with pytest.raises(FolioError, match="manifest says"):
        run_build(recipe, output_dir, source=path)
    assert run_build(recipe, output_dir, source=path, replace=True) is True and list(verify(Build(output_dir))) == []


def test_directory_that_is_not_a_build_is_never_replaced(text_recipe: TextRecipe, tmp_path: Path) -> None:
    recipe, path = text_recipe()
    output_dir = tmp_path / "shards/own"
    output_dir.mkdir(parents=True)
    (output_dir / "thesis.txt").write_text("years of work")
    for replace in (False, True):
        with pytest.raises(MisuseError, match="exists and is not a build"):
            run_build(recipe, output_dir, source=path, replace=replace)
    assert (output_dir / "thesis.txt").read_text() == "years of work"
    (output_dir / "thesis.txt").unlink()
    assert run_build(recipe, output_dir, source=path) is True  # the directory is empty now


def test_files_that_appear_in_the_directory_during_a_build_are_kept(
    text_recipe: TextRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, path = text_recipe()

    def export_and_lay_out(corpus: PreparedCorpus) -> ShardLayout:
        (tmp_path / "own").mkdir()
        (tmp_path / "own/train.bin").write_text("of an export")
        return lay_out_shards(corpus)

    monkeypatch.setattr("preprocess.build.build.lay_out_shards", export_and_lay_out)
    with pytest.raises(FolioError, match="own got other files meanwhile; move them away"):
        run_build(recipe, tmp_path / "own", source=path)
    assert (tmp_path / "own/train.bin").read_text() == "of an export"


@pytest.mark.parametrize("damage", ['{"version": 99}', "{", ""])
def test_build_with_a_damaged_manifest_can_be_replaced(text_recipe: TextRecipe, tmp_path: Path, damage: str) -> None:
    recipe, path = text_recipe()
    output_dir = tmp_path / "shards/own"
    run_build(recipe, output_dir, source=path)
    (output_dir / "manifest.json").write_text(damage)
    with pytest.raises(FolioError, match="pass --replace to build it again|this is not a Folio build"):
        run_build(recipe, output_dir, source=path)
    assert run_build(recipe, output_dir, source=path, replace=True) is True and list(verify(Build(output_dir))) == []
    (output_dir / "manifest.json").write_text(damage)
    (output_dir / "notes.txt").write_text("mine")
    with pytest.raises(MisuseError, match="is not a build"):
        run_build(recipe, output_dir, source=path, replace=True)


def test_lock_keeps_a_second_process_out(text_recipe: TextRecipe, tmp_path: Path) -> None:
    recipe, path = text_recipe()
    (tmp_path / "shards").mkdir()
    code = (
        "import sys; from pathlib import Path; from preprocess.build.publish import lock_build\n"
        "with lock_build(Path(sys.argv[1])): print('entered')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "shards/own")]
    with filelock.FileLock(tmp_path / "shards/.own.lock"):
        # The lock belongs to a process, so the second build must be in another one.
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "another build of" in done.stderr and "entered" not in done.stdout
    assert run_build(recipe, tmp_path / "shards/own", source=path) is True


def test_replacement_killed_between_its_renames_is_undone(text_recipe: TextRecipe, tmp_path: Path) -> None:
    recipe, path = text_recipe()
    output_dir = tmp_path / "shards/own"
    run_build(recipe, output_dir, source=path)
    before = file_bytes(output_dir)
    output_dir.rename(output_dir.parent / ".own.123.replaced")
    assert run_build(recipe, output_dir, source=path) is False and file_bytes(output_dir) == before


def test_replacement_that_fails_between_its_renames_is_undone(
    text_recipe: TextRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, path = text_recipe()
    output_dir = tmp_path / "shards/own"
    run_build(recipe, output_dir, source=path)
    before, rename = file_bytes(output_dir), os.rename

    def interrupt_second_rename(source: Path, target: Path) -> None:
        if Path(source).name == "build":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupt_second_rename)
    with pytest.raises(KeyboardInterrupt):
        run_build(recipe, output_dir, source=path, replace=True)
    assert file_bytes(output_dir) == before and list_leftovers(output_dir.parent) == [".own.work"]
    monkeypatch.undo()
    assert run_build(recipe, output_dir, source=path, replace=True) is True and list_leftovers(output_dir.parent) == []


def test_link_to_a_build_remains_a_link(text_recipe: TextRecipe, tmp_path: Path) -> None:
    recipe, path = text_recipe()
    (tmp_path / "big").mkdir()
    (tmp_path / "shards").mkdir()
    link = tmp_path / "shards/own"
    link.symlink_to(tmp_path / "big/own")
    assert run_build(recipe, link, source=path) is True
    assert run_build(recipe, link, source=path, replace=True) is True
    assert link.is_symlink() and list(verify(Build(tmp_path / "big/own"))) == []
    assert list_leftovers(tmp_path / "big") == []
