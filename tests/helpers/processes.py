"""Commands of train.py in several processes, started as torchrun starts them.

Importing torch takes seconds, so the same processes run several commands, one after the other.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.runs import REPO, make_environment

# Runs train.main with each list of arguments of the file sys.argv[1], whose folder gets what each printed.
SCRIPT = """
import contextlib, json, os, pathlib, sys
from train import train
from train.core.cli import run_command

commands = pathlib.Path(sys.argv[1])
for number, (port, arguments) in enumerate(json.loads(commands.read_text())):
    os.environ["MASTER_PORT"] = str(port)
    output = commands.with_name(f"{number}.{os.environ['RANK']}")
    with open(f"{output}.out", "w") as out, open(f"{output}.err", "w") as err:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = run_command(train.main, arguments)
            except SystemExit as e:  # another process reports the error
                status = e.code
    pathlib.Path(f"{output}.status").write_text(str(status))
"""


@dataclass(frozen=True)
class Outcome:
    """What one command did: by rank, the exit status (None: it was killed) and what it printed."""

    statuses: list[int | None]
    outputs: list[str]
    errors: list[str]

    @property
    def stdout(self) -> str:
        return self.outputs[0]


def train_in_processes(
    num_processes: int, folder: Path, *commands: Sequence[object], before: str = "", timeout_s: float = 300
) -> list[Outcome]:
    """Run train.py with each of `commands`, lists of arguments, in the same `num_processes` processes.

    `folder` is created for what they print. `before` is Python code that each process runs first.
    """
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(before + SCRIPT, encoding="utf-8")
    lines = [
        (port, list(map(str, command))) for port, command in zip(_free_ports(len(commands)), commands, strict=True)
    ]
    (folder / "commands.json").write_text(json.dumps(lines), encoding="utf-8")
    processes = []
    for rank in range(num_processes):
        environment = make_environment() | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_processes),
            "LOCAL_WORLD_SIZE": str(num_processes),
            "MASTER_ADDR": "127.0.0.1",
        }
        command = [sys.executable, str(script), str(folder / "commands.json")]
        processes.append(subprocess.Popen(command, env=environment, cwd=REPO))
    try:
        for process in processes:
            process.wait(timeout=timeout_s)
    finally:
        for process in processes:
            process.kill()
    return [_read_outcome(folder, number, num_processes) for number in range(len(commands))]


def _free_ports(count: int) -> list[int]:
    """Return `count` different ports that no program listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _read_outcome(folder: Path, number: int, num_processes: int) -> Outcome:
    def read(rank: int, name: str) -> str:
        path = folder / f"{number}.{rank}.{name}"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    ranks = range(num_processes)
    statuses = [int(text) if (text := read(rank, "status")) else None for rank in ranks]
    return Outcome(statuses, [read(rank, "out") for rank in ranks], [read(rank, "err") for rank in ranks])
