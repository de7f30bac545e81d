"""Folio's builds as jobs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.lib.measure import Job

BUILD_NAME = "bench"  # the folder of a build inside its job's folder


def build_job(python: Path, *options: str) -> Job:
    """Return a job that runs `preprocess build` with `options`."""
    command = [str(python), "-m", "preprocess", "build", *options, "--name", BUILD_NAME, "--quiet"]
    return lambda folder: [*command, "--output", str(folder / BUILD_NAME)]


def input_options(paths: Sequence[Path]) -> list[str]:
    """Return an option --input for each path."""
    return [word for path in paths for word in ("--input", str(path))]


def read_build_log(folder: Path) -> dict[str, Any]:
    """Return the build log of the build that a job made in `folder`."""
    log: dict[str, Any] = json.loads((folder / BUILD_NAME / "build_log.json").read_bytes())
    return log
