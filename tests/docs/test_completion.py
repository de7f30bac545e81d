"""docs/completion.md: bash completes commands, options, corpora and builds; the other shells get a script."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.helpers.doc_commands import list_blocks
from train.__main__ import COMMANDS

PAGE = ROOT / "docs/completion.md"
PROGRAM = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m preprocess "$@"\n'


def run_bash(script: str, folder: Path) -> str:
    """Return what bash prints. `preprocess` is on its path."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin/preprocess").write_text(PROGRAM)
    (folder / "bin/preprocess").chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-euc", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bash_completes_commands_options_corpora_and_builds(tmp_path: Path) -> None:
    (tmp_path / "shards/walden").mkdir(parents=True)
    (tmp_path / "shards/walden/manifest.json").touch()
    lines = [
        "preprocess tok",
        "preprocess build --near-dedup-t",
        "preprocess build --corpus tinys",
        "preprocess show w",
    ]
    presses = "".join(
        f"COMPREPLY=(); COMP_WORDS=({line}); COMP_CWORD={len(line.split()) - 1}; _preprocess_completion preprocess; "
        'echo "${COMPREPLY[@]}"\n'
        for line in lines
    )
    block = list_blocks(PAGE)[0]
    found = run_bash(f"{block.script}\n{presses}complete -p preprocess folio", tmp_path).splitlines()
    assert found[:4] == ["tokenizer", "--near-dedup-threshold", "tinyshakespeare tinystories", "walden"]
    assert "-F _preprocess_completion" in found[4] and found[5].endswith(" folio")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script(shell: str, tmp_path: Path) -> None:
    script = run_bash(f"_PREPROCESS_COMPLETE={shell}_source preprocess", tmp_path)
    assert f"_PREPROCESS_COMPLETE={shell}_complete" in script


def test_page_names_every_command_of_folio() -> None:
    lists = re.findall(r'(?:-W "|-a "|:\()([a-z ]+)', PAGE.read_text(encoding="utf-8"))
    assert len(lists) == 3 and all(names.split() == [*COMMANDS] for names in lists)
