"""Fixtures that many tests of `train/` share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.runs import LONG, make_build, train_run


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the runs of a test file, with the build `tiny`."""
    folder = tmp_path_factory.mktemp(request.module.__name__.rpartition(".")[2])
    make_build(folder / "tiny")
    return folder


@pytest.fixture(scope="session")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of 150 steps, with dropout and two micro-batches per step.

    Tests must not change it.

    Its config is `long.py` beside it, and its build is equal to the build `tiny` of `folder`.
    """
    folder = tmp_path_factory.mktemp("long_run")
    make_build(folder / "tiny")
    return train_run(folder, "long", **LONG)
