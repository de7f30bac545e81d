"""The Dockerfile: what it copies exists, what it runs is Folio's, and no image runs as root.

No image is built here. These tests read the file.
"""

from __future__ import annotations

import configparser
import json
import re

import pytest

from preprocess.cli.main import main as preprocess_command
from tests.conftest import ROOT
from train.__main__ import COMMANDS

TARGETS = ("cpu", "cuda")


def read_instructions() -> list[tuple[str, str]]:
    """Return the instructions as (name, arguments), in order."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(name, arguments.strip()) for name, arguments in lines]


def read_stages() -> dict[str, list[tuple[str, str]]]:
    """Return the instructions of each stage, after those of the stage that it begins with."""
    stages: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for instruction, arguments in read_instructions():
        if instruction == "FROM":
            parent, _, name = arguments.split()
            stages[name] = list(stages.get(parent, []))
        elif name:
            stages[name].append((instruction, arguments))
    return stages


def list_copied() -> list[str]:
    """Return the paths that are copied from the repository."""
    copies = [arguments.split() for name, arguments in read_instructions() if name in ("COPY", "ADD")]
    return [path for words in copies if not words[0].startswith("--from=") for path in words[:-1]]


def test_targets_exist_and_begin_with_the_same_stage() -> None:
    stages = read_stages()
    assert {"wheel", "base", *TARGETS} == stages.keys()
    for target in TARGETS:
        assert stages[target][: len(stages["base"])] == stages["base"]


def test_copied_paths_exist_and_only_they_are_sent_to_docker() -> None:
    copied = list_copied()
    assert {"preprocess", "train", "configs", "constraints.txt"} <= set(copied)
    for path in copied:
        assert (ROOT / path).exists(), path
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored[0] == "*"
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == set(copied)


def test_stages_that_files_are_copied_from_exist() -> None:
    sources = re.findall(r"^COPY --from=(\w+) ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert sources and set(sources) <= read_stages().keys()


@pytest.mark.parametrize("target", TARGETS)
def test_image_runs_as_a_user_without_rights(target: str) -> None:
    users = [arguments for name, arguments in read_stages()[target] if name == "USER"]
    created = re.search(r"useradd [^&]*--uid (\d+) folio", str(read_stages()["base"]))
    assert created and users[-1] == created[1] != "0"
    assert read_stages()[target][-1] == ("USER", users[-1]), "nothing runs as root after the installation"


@pytest.mark.parametrize("target", TARGETS)
def test_default_command_runs_commands_of_folio(target: str) -> None:
    (command,) = [arguments for name, arguments in read_stages()[target] if name == "CMD"]
    shell, option, script = json.loads(command)
    assert (shell, option) == ("sh", "-c")
    for line in script.split(" && "):
        program, subcommand, *_ = line.split()
        known = {"folio": COMMANDS, "preprocess": preprocess_command.commands}[program]
        assert subcommand in known, line


@pytest.mark.parametrize("target", TARGETS)
def test_libraries_are_pinned_and_extras_exist(target: str) -> None:
    installs = [arguments for name, arguments in read_stages()[target] if name == "RUN" and "pip install" in arguments]
    assert len(installs) == 2 and " torch" in installs[0], "PyTorch has a layer of its own"
    assert all("--constraint /opt/folio/constraints.txt" in line for line in installs)
    extras = re.search(r"'folio-lm\[(.*)\]'", installs[1])
    assert extras
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert {"serve", *extras[1].split(",")} <= set(setup["options.extras_require"]) and "serve" in extras[1].split(",")


def test_page_about_serving_builds_the_targets() -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    assert set(re.findall(r"docker build --target (\w+) ", page)) == set(TARGETS)
