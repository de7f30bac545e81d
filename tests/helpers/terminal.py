"""A pseudo-terminal for commands, and what a person would see on it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

CODES = re.compile(r"(\r|\n|\x1b\[K)")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def run_on_terminal(
    command: list[str],
    *,
    columns: int = 80,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    watch: Callable[[subprocess.Popen[bytes], str], object] = lambda process, output: None,
) -> tuple[int, str]:
    """Run `command` on a terminal. Return its exit status and everything that it wrote.

    `watch` is called with the process and the output so far, whenever there is new output.
    """
    master, slave = _open_terminal(columns)
    environment = {**(env or os.environ), "TERM": "xterm"}
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment, cwd=cwd)
    os.close(slave)
    output = b""
    try:
        for data in read_until_closed(master):
            output += data
            watch(process, output.decode(errors="replace"))
        return process.wait(timeout=60), output.decode()
    finally:
        process.kill()
        process.wait()


@contextmanager
def terminal_stream(columns: int = 80) -> Iterator[tuple[TextIO, Callable[[], str]]]:
    """Yield a text stream that is a terminal, and a function that closes it and returns what was written."""
    master, slave = _open_terminal(columns)
    stream = open(slave, "w", encoding="utf-8")  # noqa: SIM115 (`read` closes it too)

    def read() -> str:
        stream.close()
        return b"".join(read_until_closed(master)).decode()

    with stream:
        yield stream, read


def _open_terminal(columns: int) -> tuple[int, int]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    return master, slave


def read_until_closed(fd: int) -> Iterator[bytes]:
    """Yield what is written to a terminal until the writers have closed it."""
    try:
        while data := os.read(fd, 1 << 16):
            yield data
    except OSError:  # on Linux, the end of a terminal is an error
        pass
    finally:
        os.close(fd)


def render(output: str) -> list[str]:
    """Return the lines that are on the screen after `output`, without colours; the last one is that of the cursor."""
    lines, column = [""], 0
    for part in CODES.split(COLOURS.sub("", output)):
        if part == "\r":
            column = 0
        elif part == "\n":
            lines.append("")
        elif part == "\x1b[K":
            lines[-1] = lines[-1][:column]
        else:
            lines[-1] = lines[-1][:column] + part + lines[-1][column + len(part) :]
            column += len(part)
    return lines
