"""Encode with an untrusted tokenizer.json in a child process.

The library `tokenizers` runs in Rust and cannot be interrupted. A thread that still encodes when the
process ends can crash it, and where a regular expression exceeds the limit of its engine, the library
prints a backtrace. A child can be ended at any time, and what it prints is not shown.

The cost: 0.05 s for the start of the child, 20 MB beside the tokenizer itself, which this process then
does not hold, and 15 ns for a character, which takes at least ten times as long to encode.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import threading
import weakref
from array import array
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from preprocess.errors import FolioError
from preprocess.limited_child import explain_failed_start, name_status, start_child
from preprocess.tokenizers import encoder_child
from preprocess.tokenizers.encoder_child import ANSWER, ERROR, REQUEST

MIN_SECONDS = 5.0
MAX_START_S = 60.0  # beside the others, for a child that starts while the machine is busy
MIN_CHARACTERS_PER_SECOND = 20_000  # the slowest real tokenizers encode fifty times as much
MAX_WAIT_S = 0.25  # in one call
CHILD_CODE = f"""import runpy, sys
sys.path[:] = sys.argv[1:]
runpy.run_path({encoder_child.__file__!r}, run_name="__main__")"""
Ids = array  # of uint32
Result = TypeVar("Result")


class EncodingError(Exception):
    """The library could not load the tokenizer.json, or not encode. The message is the library's."""


class EncoderProcess:
    """A tokenizer of the library `tokenizers` in a child of this process. A fork of the process starts its own child.

    The methods may be called from several threads. Both raise EncodingError if the library fails, and
    FolioError if it takes too long or if the child cannot be started or dies.
    """

    def __init__(self, spec: str) -> None:
        """`spec`: the tokenizer.json. Special tokens are not looked for in text."""
        self._spec = spec.encode()
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def start(self) -> None:
        """Start the child, unless it runs, so that it loads the tokenizer."""
        self.encode([])

    def encode(self, texts: list[str]) -> list[Ids]:
        """Return the ids of each text, without special tokens."""
        seconds = MIN_SECONDS + sum(map(len, texts)) / MIN_CHARACTERS_PER_SECOND
        with self._lock:
            if self._child is None or not self._child.is_usable():
                seconds += MAX_START_S + len(self._spec) / MIN_CHARACTERS_PER_SECOND
            try:
                return run_limited(lambda: self._get_child().encode(texts), seconds)
            except BaseException:  # also an interruption, after which the child may still send the ids
                if self._child is not None:
                    self._child.end()
                raise

    def _get_child(self) -> _Child:
        if self._child is None or not self._child.is_usable():
            self._child = _Child()
            self._child.load(self._spec)
        return self._child


class _Child:
    def __init__(self) -> None:
        self._process = start_child(CHILD_CODE, {"RUST_BACKTRACE": "0"})
        self._parent_id = os.getpid()
        self.end = weakref.finalize(self, _end, self._process, self._parent_id)  # at the latest when Python ends

    def is_usable(self) -> bool:
        return self.end.alive and self._parent_id == os.getpid()

    def load(self, spec: bytes) -> None:
        self._send(spec)
        try:
            self._receive()
        except EOFError as e:
            assert self._process.stderr is not None
            raise explain_failed_start("encodes text", self._process.stderr.read()) from e

    def encode(self, texts: list[str]) -> list[Ids]:
        self._send(json.dumps(texts).encode())
        try:
            return self._receive()
        except EOFError as e:
            status = name_status(self._process.wait())
            raise FolioError(
                f"the process that encodes text has ended with {status}, which may mean that memory ran out or that "
                "the tokenizer is malicious; run the same command again, or use another tokenizer"
            ) from e

    def _send(self, request: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # `_receive` reports a child that has ended
            self._process.stdin.write(REQUEST.pack(len(request)))
            self._process.stdin.write(request)
            self._process.stdin.flush()

    def _receive(self) -> list[Ids]:
        kind, num_texts, count = ANSWER.unpack(self._read(ANSWER.size))
        if kind == ERROR:
            raise EncodingError(self._read(count).decode())
        lengths, ids = array("q", self._read(8 * num_texts)), array("I", self._read(4 * count))
        parts, start = [], 0
        for length in lengths:
            parts.append(ids[start : start + length])
            start += length
        return parts

    def _read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        if len(data) < size:
            raise EOFError
        return data


def _end(process: subprocess.Popen[bytes], parent_id: int) -> None:
    """End a child, in the process that has started it."""
    if parent_id == os.getpid():
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            # Closing fails if the child has not read all. If the files were left to the garbage collector, Python
            # 3.13 and later would print this error.
            with suppress(OSError):
                stream.close()


def run_limited(work: Callable[[], Result], seconds: float) -> Result:
    """Return the result of `work`, or raise its exception. Raises FolioError after `seconds`.

    The time in which the process is stopped, by Ctrl-Z, does not count. `work` is a conversation with
    a child, and ends with it.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    for _ in range(math.ceil(seconds / MAX_WAIT_S)):  # a wait in which the process was stopped counts once
        thread.join(MAX_WAIT_S)
    if errors:
        raise errors[0]
    if not results:
        raise FolioError(
            f"the tokenizer has not finished encoding after {seconds:,.0f} s; its file may be malicious, use another "
            "tokenizer"
        )
    return results[0]
