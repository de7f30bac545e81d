"""What setup.cfg declares agrees with the code. tests/end_to_end/test_packaging.py builds and
installs the wheel.
"""

from __future__ import annotations

import configparser
import functools
import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_architecture import PREPROCESS, TRAIN, all_imports

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[(.*)\])?")
# Modules of distributions that another dependency brings along.
BROUGHT_BY = {
    "awkward": "gigatoken", "fsspec": "torch", "tiktoken_ext": "tiktoken", "triton": "torch", "urllib3": "requests"
}  # fmt: skip


def read_requirements(text: str) -> set[str]:
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return {match[1].lower() for line in lines if (match := REQUIREMENT.match(line))}


REQUIRED = read_requirements(SETUP["options"]["install_requires"])
EXTRAS = {name: read_requirements(text) for name, text in SETUP["options.extras_require"].items()}


@functools.cache
def list_distributions() -> Mapping[str, list[str]]:
    """Return the names of the installed distributions that contain each top-level module."""
    return importlib.metadata.packages_distributions()


def test_all_names_every_extra_for_users() -> None:
    match = REQUIREMENT.match(SETUP["options.extras_require"]["all"].strip())
    assert match is not None and match[1] == SETUP["metadata"]["name"]
    assert set(match[2].split(",")) == EXTRAS.keys() - {"all", "dev"}


@pytest.mark.parametrize("path", PREPROCESS + TRAIN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imported_libraries_are_declared(path) -> None:  # type: ignore[no-untyped-def]
    declared = REQUIRED.union(*EXTRAS.values())
    for module in {module.split(".")[0] for module in all_imports(path)} - {"preprocess", "train"}:
        if module not in sys.stdlib_module_names | {"compression"}:  # a package of Python 3.14
            names = {BROUGHT_BY.get(module, module), *list_distributions().get(module, [])}
            assert {name.lower() for name in names} & declared, f"{path} imports {module}, which is not in setup.cfg"


def test_constraints_pin_every_requirement() -> None:
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    names = {name.lower() for name in pinned}
    assert REQUIRED.union(*EXTRAS.values()) - {"folio-lm"} <= names


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_extras_can_be_installed_together_under_the_constraints(tmp_path: Path) -> None:
    # A copy, because pip writes folio_lm.egg-info beside setup.cfg.
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    for name in ("preprocess", "train", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    if resolve("--retries", "0", "--timeout", "15", "--no-deps", "click", cwd=tmp_path).returncode != 0:
        pytest.skip("no package index can be reached")
    done = resolve("--constraint", "constraints.txt", f".[{','.join(EXTRAS)}]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]


def resolve(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run pip's resolver without regard to what is installed here. Nothing is installed."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_commands_can_be_imported() -> None:
    commands = dict(
        re.split(r"\s*=\s*", line) for line in SETUP["options.entry_points"]["console_scripts"].split("\n") if line
    )
    assert commands.keys() == {"preprocess", "folio"}
    for target in commands.values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function))
