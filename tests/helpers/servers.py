"""Start `folio serve` in a process."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.runs import make_command, make_environment

SECONDS_TO_START = 120


@contextmanager
def serve(model: Path, *arguments: object) -> Iterator[str]:
    """Yield the address of a server of `model`, a run or an exported folder, such as http://127.0.0.1:41233/v1.

    It is on the CPU, on a free port. After the block, Ctrl-C must end it with the status 130, and nothing
    but the last line on stderr.
    """
    command = make_command("serve.py", model, "--port", 0, "--device", "cpu", "--quiet", *arguments)
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=make_environment())
        try:
            assert process.stdout
            lines = [process.stdout.readline() for _ in range(2)]
            address = re.search(r" at (http://127\.0\.0\.1:\d+/v1); Ctrl-C ends the server$", lines[1].rstrip())
            errors.seek(0)
            assert address, (lines, errors.read())
            yield address[1]
            process.send_signal(signal.SIGINT)
            status = process.wait(timeout=60)
            errors.seek(0)
            assert (status, errors.read()) == (130, "the server has ended\n")
        finally:
            process.kill()
            process.wait()
