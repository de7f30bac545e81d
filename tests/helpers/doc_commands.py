"""Commands in Markdown pages: find them, and run them as written, in a real shell.

A command is a line of a block with the language `sh`, or a line that begins with `$ ` of a block with
the language `console`. A comment `<!-- not run: REASON -->` before a block says why no test runs it.
"""

from __future__ import annotations

import configparser
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]*) -->\n\n?)?```(?P<language>\w*)\n(?P<body>.*?)^```$", re.S | re.M
)
PROGRAMS = ("preprocess", "folio", "python", "pip", "make", "torchrun", "docker", "git")
# A program in the test's shell. It passes its arguments to the test, which runs the command in its own process,
# because the import of PyTorch would take seconds for each command.
SHIM = """#!/bin/bash
printf '%s\\0' {name} "$@" > {folder}/arguments
if [ -p /dev/stdin ]; then cat > {folder}/stdin; else : > {folder}/stdin; fi
echo "$PWD" > {folder}/request
read -r status < {folder}/reply
cat {folder}/stdout
cat {folder}/stderr >&2
exit "$status"
"""


@dataclass(frozen=True)
class Block:
    """Commands of a page, in one block."""

    page: Path
    line: int  # of the first command in the page, from 1
    script: str
    reason: str | None  # why no test runs it

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    def list_commands(self) -> list[list[str]]:
        """Return the arguments of each line that begins with one of PROGRAMS."""
        text = re.sub(r"\\\n\s*", "", re.sub(r"<<'EOF'\n.*?^EOF$", "", self.script, flags=re.S | re.M))
        lines = [shlex.split(line, comments=True) for line in text.splitlines() if "<<" not in line]
        return [line for line in lines if line and line[0] in PROGRAMS]


def list_blocks(page: Path) -> list[Block]:
    """Return the blocks of commands of a page, in order."""
    text = page.read_text(encoding="utf-8")
    blocks = []
    for match in BLOCK.finditer(text):
        script = match["body"]
        if match["language"] == "console":
            script = "".join(line[2:] + "\n" for line in script.splitlines() if line.startswith("$ "))
        elif match["language"] != "sh":
            continue
        line = text.count("\n", 0, match.start("body")) + 1
        blocks.append(Block(page, line, script, match["reason"]))
    return blocks


class Shell:
    """Run scripts with bash in `folder`, in which `preprocess`, `folio` and `python train/…` run in this process.

    `change` gets the arguments of each of these commands, with the name of the program, and returns those with which
    it is run, such as with fewer steps. `answers` is what `folio chat` reads. Other programs are not found, except
    those of the system.
    """

    def __init__(self, folder: Path, change: Callable[[list[str]], list[str]], answers: str = "") -> None:
        self.folder, self.change, self.answers = folder, change, answers
        self.pipes = folder / ".shell"
        (self.pipes / "bin").mkdir(parents=True)
        for name in ("request", "reply"):
            os.mkfifo(self.pipes / name)
        for name in ("preprocess", "folio", "python", "pip"):
            shim = self.pipes / "bin" / name
            shim.write_text(SHIM.format(name=name, folder=shlex.quote(str(self.pipes))))
            shim.chmod(0o755)
        (folder / ".venv/bin").mkdir(parents=True)
        (folder / ".venv/bin/activate").touch()
        for name in ("train", "configs", "examples", "docs", "README.md"):
            (folder / name).symlink_to(ROOT / name)

    def run(self, script: str) -> str:
        """Run a script, and return what its commands print. Raises AssertionError at the first that fails."""
        environment = {**os.environ, "PATH": f"{self.pipes / 'bin'}:{os.environ['PATH']}"}
        with open(self.pipes / "log", "w+", encoding="utf-8") as log, subprocess.Popen(
            ["bash", "-euc", script], cwd=self.folder, env=environment, text=True, stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            ended = threading.Thread(target=self._report_end, args=(process,), daemon=True)
            ended.start()
            while request := (self.pipes / "request").read_text().strip():
                try:
                    status = self._answer(Path(request))
                except BaseException:
                    process.kill()
                    raise
                (self.pipes / "reply").write_text(f"{status}\n")
            ended.join()
        output = (self.pipes / "log").read_text(encoding="utf-8")
        assert process.returncode == 0, f"{script}\nended with the status {process.returncode}:\n{output}"
        return output

    def _report_end(self, process: subprocess.Popen[str]) -> None:
        process.wait()
        (self.pipes / "request").write_text("\n")

    def _answer(self, folder: Path) -> int:
        """Run the command of the shim, write what it prints, and return its exit status."""
        program, *arguments = (self.pipes / "arguments").read_text().split("\0")[:-1]
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(folder)
            patch.setattr("sys.stdin", io.StringIO((self.pipes / "stdin").read_text() or self.answers))
            status = run_command(self.change([program, *arguments]))
        for name, stream in (("stdout", out), ("stderr", err)):
            stream.seek(0)
            (self.pipes / name).write_text(stream.read())
        return status


def run_command(command: list[str]) -> int:
    """Run `preprocess …`, `folio …` or `python train/NAME.py …` in this process, and return the exit status."""
    program, *arguments = command
    if program == "preprocess":
        from preprocess.cli.main import main

        try:
            main(arguments, prog_name="preprocess")
        except SystemExit as e:
            return e.code if isinstance(e.code, int) else int(e.code is not None)
        return 0
    if program == "pip":
        return check_extras(arguments)
    if program == "python":
        if not arguments[0].startswith("train/"):
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
            print(done.stdout, end="")
            print(done.stderr, end="", file=sys.stderr)
            return done.returncode
        arguments = [Path(arguments[0]).stem, *arguments[1:]]
    from train.core.cli import run_command as run

    if arguments[0] in ("-h", "--help"):
        from train.__main__ import dispatch

        return run(dispatch, arguments)
    return run(importlib.import_module(f"train.{arguments[0]}").main, arguments[1:])


def check_extras(arguments: list[str]) -> int:
    """Return 0 if `pip install 'folio-lm[A,B]'` names extras of setup.cfg. Nothing is installed."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    match = re.fullmatch(r"folio-lm\[([\w,]+)\]", arguments[-1])
    assert arguments[0] == "install" and match is not None, arguments
    return int(not {*match[1].split(",")} <= {*setup["options.extras_require"]})
