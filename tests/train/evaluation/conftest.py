"""Fixtures of the tests of evaluations: a build, and runs on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.runs import invoke, make_build, write_config


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the build `tiny`, and the runs `one` and `two` on it."""
    folder = tmp_path_factory.mktemp("evaluated")
    build = make_build(folder / "tiny")
    for name, settings in (("one", {}), ("two", {"seed": 7, "n_embd": 16})):
        assert invoke("train.py", write_config(folder / f"{name}.py", build, **settings)).returncode == 0
    return folder


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """A copy of the run `one`."""
    return Path(shutil.copytree(folder / "one", tmp_path / "run"))
