"""What the tests of the commands share."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

Run = Callable[..., subprocess.CompletedProcess]
TINY = ("build", "--corpus", "synthetic", "--num-pairs", "40", "--tokenizer", "byte", "--quiet")


def check_error(done: subprocess.CompletedProcess, status: int, *expected: str) -> None:
    """Assert that a command ended with `status`, and that its last line is an error that contains
    `expected`.
    """
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.lower().startswith("error: "), last
    for words in expected:
        assert words in last, last
