"""What the tests of evaluations share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CPU = ("--device", "cpu")


def read_rows(run: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's evaluations.jsonl."""
    return [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]


def snapshot(run: Path) -> dict[str, tuple[bytes, int]]:
    """Return the content and the modification time of every file except locks."""
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in run.rglob("*") if p.is_file() and p.name != ".lock"}


def check_error(result: Any, status: int, message: str) -> None:
    """Check that a command failed with a status and one line, which contains the message."""
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (status, "", 1), (
        result.stderr + result.stdout
    )
    assert message in result.stderr, result.stderr
