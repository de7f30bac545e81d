"""The number of threads of a run on a CPU: chosen at its start, and kept when it continues."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers.runs import invoke, write_config
from train.config import load_config
from train.core.distributed import World
from train.core.threads import NUM_THREADS
from train.run import choose_threads
from train.run.checkpoint import find_newest_checkpoint
from train.run.choose_threads import choose_num_threads, select, set_initial_threads
from train.run.context import open_run
from train.run.preflight import preflight
from train.run.state import new_state


@pytest.fixture(autouse=True)
def restore_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(NUM_THREADS, raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("times", "idle", "best"),
    [
        ({4: 1.0, 2: 0.9, 1: 1.5}, 4, 2),
        ({4: 1.0, 2: 0.96, 1: 1.5}, 4, 4),
        ({1: 1.0, 2: 0.97}, 1, 1),
        ({1: 1.0, 2: 0.5}, 1, 2),
        ({3: 1.0}, 3, 3),
    ],
)
def test_select_changes_the_number_only_if_another_is_clearly_faster(
    times: dict[int, float], idle: int, best: int
) -> None:
    assert select(times, idle) == best


@pytest.mark.parametrize(
    ("times", "best"),
    [
        ({8: 1.0, 4: 1.1, 2: 1.3}, 8),  # 1 is not tried
        ({8: 3.0, 4: 1.0, 2: 1.1, 1: 1.15}, 4),
        ({8: 3.0, 4: 2.0, 2: 1.0, 1: 1.1}, 2),
    ],
)
def test_choose_num_threads_tries_fewer_until_they_are_slower(
    times: dict[int, float], best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def time(_: object) -> float:
        tried.append(torch.get_num_threads())
        return times[tried[-1]]

    monkeypatch.setattr(choose_threads, "_time", time)
    monkeypatch.setattr(choose_threads, "count_cores", lambda: 8)
    torch.set_num_threads(8)
    line = choose_num_threads(lambda: None, pass_s=0.01)
    assert torch.get_num_threads() == best and line.startswith(f"{best} threads on 8 cores; a pass takes ")
    assert tried == list(times)


def test_choose_num_threads_does_not_repeat_a_long_pass() -> None:
    torch.set_num_threads(2)
    choose_num_threads(lambda: pytest.fail("repeated"), pass_s=5.0)
    assert torch.get_num_threads() == 2


def test_initial_threads_are_the_idle_cores_unless_the_user_sets_a_number(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(write_config(folder / "run.py", folder / "tiny"), {})
    given = load_config(folder / "run.py", {"num_threads": "3"})
    monkeypatch.setattr(choose_threads, "count_idle_cores", lambda _: 1)
    torch.set_num_threads(2)
    monkeypatch.setenv(NUM_THREADS, "2")
    set_initial_threads(config)
    assert torch.get_num_threads() == 2
    monkeypatch.delenv(NUM_THREADS)
    set_initial_threads(config)
    assert torch.get_num_threads() == 1
    set_initial_threads(given)
    assert torch.get_num_threads() == 3


def test_run_that_continues_keeps_its_number_of_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose_threads, "count_cores", lambda: 3)
    monkeypatch.setattr(choose_threads, "count_idle_cores", lambda _: 3)
    monkeypatch.setattr(choose_threads, "_time", lambda _: 1.0)
    path = write_config(folder / "run.py", folder / "tiny", max_steps=8)
    first = invoke("train.py", path, "--max_steps=4")
    assert first.returncode == 0 and "preflight: 3 threads on 3 cores" in first.stdout
    checkpoint = find_newest_checkpoint(folder / "run", print)
    assert checkpoint is not None and checkpoint.info.num_threads == 3
    monkeypatch.setattr(choose_threads, "count_idle_cores", lambda _: 1)  # busy now
    second = invoke("train.py", path)
    assert second.returncode == 0 and "threads on" not in second.stdout and torch.get_num_threads() == 3
    third = invoke("train.py", path, "--restart")
    assert third.returncode == 0 and torch.get_num_threads() == 1


def test_preflight_keeps_the_number_that_the_user_sets(folder: Path) -> None:
    run = open_run(load_config(write_config(folder / "run.py", folder / "tiny"), {"num_threads": "3"}), World())
    state = new_state(run.config, run.source.vocab_size, device=torch.device("cpu"))
    assert not any("threads" in line for line in preflight(run, state, state.model))
    assert state.num_threads == torch.get_num_threads() == 3
