"""How a worker process on any machine of a cluster runs a task, and what it checks before its first one.

A build has the same bytes on all machines only if they have the same versions of the libraries, and
its tasks work only if they see the same files. A cluster may have neither, so each worker process
checks both. The main process writes a random text to a file beside the build, and a worker reads
it: a folder of the same name on the worker's own disk is then not taken for the shared one.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess.build.engines.exceptions import describe_exception
from preprocess.build.engines.interface import Workload
from preprocess.build.engines.local import limit_threads
from preprocess.build.engines.unused_libraries import leave_out_pandas
from preprocess.errors import FolioError, shorten
from preprocess.versions import find_version


@dataclass(frozen=True)
class Requirements:
    """What every machine must have to run the tasks of a build."""

    marker: Path  # the file beside the build
    text: str  # the content of the file, another one for every run
    working_dir: Path  # of the main process; relative paths of input files begin there
    sample_input: Path | None  # absolute; one of the files that the tasks read
    versions: tuple[tuple[str, str], ...]  # name and version of each program and library


@contextlib.contextmanager
def publish_requirements(workload: Workload) -> Iterator[Requirements]:
    """Yield the requirements of a build. Their file is deleted after the block."""
    marker = workload.output_dir.with_name(f".{workload.output_dir.name}.machines")
    sample_input = workload.sample_input and workload.sample_input.absolute()
    versions = tuple(workload.versions.items())
    required = Requirements(marker, secrets.token_hex(16), Path.cwd(), sample_input, versions)
    marker.write_text(required.text)
    try:
        yield required
    finally:
        marker.unlink(missing_ok=True)


def run_task(required: Requirements, function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    """Return (True, result) of a task, or (False, its exception as `describe_exception` describes it)."""
    try:
        _set_up_process()
        _check_machine(required)
        return True, function(*arguments)
    except BaseException as e:  # every exception must be sent to the main process
        return False, describe_exception(e)


@functools.cache
def _set_up_process() -> None:
    leave_out_pandas()
    limit_threads()


@functools.cache
def _check_machine(required: Requirements) -> None:
    """Raise FolioError if this machine does not have what is required."""
    name = shorten(socket.gethostname())
    try:
        text = required.marker.read_text()
    except OSError:
        text = ""
    if text != required.text:
        raise FolioError(
            f"the node {name} does not share the folder {required.marker.parent} with this one; choose an --output "
            "on a file system that all nodes share"
        )
    if required.sample_input is not None and not required.sample_input.exists():
        raise FolioError(
            f"the node {name} has no file {required.sample_input}; put the input files on a file system that all nodes "
            "share (for remote files, FOLIO_CACHE names the folder of the cache)"
        )
    for library, version in required.versions:
        if (found := find_version(library)) != version:
            raise FolioError(
                f"the node {name} has {library} {found}, and this one has {version}, so they could make different "
                "bytes; install the same versions on all nodes"
            )
    if required.working_dir.is_dir():
        os.chdir(required.working_dir)
