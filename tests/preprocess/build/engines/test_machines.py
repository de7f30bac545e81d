"""What a worker process on another machine checks before its first task."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from preprocess.build.engines import machines
from preprocess.build.engines.interface import Workload
from preprocess.build.engines.local import SerialEngine
from preprocess.build.engines.machines import Requirements, publish_requirements, run_task
from preprocess.versions import collect_versions
from tests.conftest import file_bytes
from tests.preprocess.build.helpers import build_corpus, list_leftovers, make_corpus_recipe, run_build


@pytest.fixture(autouse=True)
def same_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave this process as it is, and check every time."""
    monkeypatch.setattr(machines, "_set_up_process", lambda: None)
    machines._check_machine.cache_clear()
    yield
    machines._check_machine.cache_clear()


@pytest.fixture
def required(tmp_path: Path) -> Iterator[Requirements]:
    (tmp_path / "input.txt").write_text("text")
    workload = Workload(1, 1, tmp_path / "x", tmp_path / "input.txt", collect_versions("gpt2"))
    with publish_requirements(workload) as required:
        yield required


def double(x: int) -> int:
    return 2 * x


def fail(x: int) -> None:
    raise FileNotFoundError(2, "No such file or directory", f"/{x}")


def test_task_returns_its_result_or_its_exception(required: Requirements) -> None:
    assert run_task(required, double, (4,)) == (True, 8)
    is_result, value = run_task(required, fail, (4,))
    assert not is_result and value == ("builtins", "OSError", (2, "No such file or directory", "/4"))


def explain(required: Requirements) -> str:
    is_result, (_, name, (message,)) = run_task(required, double, (4,))
    assert not is_result and name == "FolioError" and "\n" not in message
    return str(message)


def test_folder_that_is_not_shared_is_reported(required: Requirements, tmp_path: Path) -> None:
    other = dataclasses.replace(required, marker=tmp_path / "missing")
    assert "does not share the folder" in explain(other)
    required.marker.write_text("of a build on the worker's own disk")
    message = explain(required)
    assert "does not share the folder" in message and "choose an --output" in message and str(tmp_path) in message


def test_missing_input_is_reported(required: Requirements) -> None:
    assert required.sample_input is not None
    required.sample_input.unlink()
    assert "has no file" in explain(required)


def test_other_version_is_reported(required: Requirements) -> None:
    assert dict(required.versions)["gigatoken"] not in ("", "absent")
    versions = tuple((name, "0.0.1" if name == "gigatoken" else version) for name, version in required.versions)
    message = explain(dataclasses.replace(required, versions=versions))
    assert "and this one has 0.0.1" in message and "gigatoken" in message


def test_marker_is_deleted(tmp_path: Path) -> None:
    with publish_requirements(Workload(1, 1, tmp_path / "x", None, {})) as required:
        assert required.marker.exists()
    assert list(tmp_path.iterdir()) == []


class ManyMachines(SerialEngine):
    """An engine whose tasks write files as they do on several machines."""

    has_several_machines = True


@pytest.mark.parametrize("tokenizer", ["gpt2", "char"])
def test_tasks_of_several_machines_write_the_same_bytes(corpus: Path, tmp_path: Path, tokenizer: str) -> None:
    expected = file_bytes(build_corpus(corpus, tmp_path / "expected/x", tokenizer=tokenizer).folder)
    recipe = make_corpus_recipe(corpus, tokenizer=tokenizer)
    run_build(recipe, tmp_path / "x", start_engine=lambda _: ManyMachines())
    assert file_bytes(tmp_path / "x") == expected
    assert len(list((tmp_path / "x").glob("train-*.bin"))) > 1
    assert list_leftovers(tmp_path) == list_leftovers(tmp_path / "expected")


def test_interrupted_shards_are_written_again(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that dies leaves a folder of a shard, which the next attempt deletes."""
    recipe = make_corpus_recipe(corpus)
    finish = "preprocess.shards.writer.ShardSealer.finish"

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finish, die)
        run_build(recipe, tmp_path / "x", start_engine=lambda _: ManyMachines())
    assert list(tmp_path.glob(".x.work/*/*.shard.*.partial"))
    run_build(recipe, tmp_path / "x", start_engine=lambda _: ManyMachines())
    assert file_bytes(tmp_path / "x") == file_bytes(build_corpus(corpus, tmp_path / "expected/x").folder)
