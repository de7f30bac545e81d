"""Extract the main text of HTML pages in a child process, whose memory and time are limited.

The problem: a page of a megabyte can make any HTML parser work for hours or fill the memory. The
HTML standard itself demands it: a page with n unclosed `<font>` and n `<p>` has n² elements. No
check of the page is both cheap and safe.

The idea: each process of a build has one child, which extracts the text of one page after another.
If the child reaches a limit it ends, the page is reported, and a new child takes the next page.
A clock must not decide the bytes of a build, so such a page is an error, unless the user asks to
leave it out.

The cost: 0.1 s for the start of the child, and about 0.2 ms for a page of 50 kB, whose text takes 1.6 ms.
"""

from __future__ import annotations

import atexit
import os
import signal
import struct
import sys
from contextlib import suppress
from typing import IO

from preprocess.limited_child import (
    explain_end,
    explain_failed_start,
    limit_resources,
    name_status,
    start_child,
)
from preprocess.readers.utf8 import Buffer

# Of a page and of the child, so that a build with two workers needs less than 1 GB. Ordinary pages take 15 to 25 times
# their size; one that is nothing but short elements takes 150 times its size.
MAX_PAGE_BYTES = 16_000_000
MAX_MEMORY_BYTES = 300_000_000
MAX_CPU_S = 30  # for one page; a page of a megabyte takes 0.03 s
MAX_WAIT_S = 300  # for one page, in case the machine is busy
LENGTH = struct.Struct("<q")  # precedes every page and every text
READY, NO_MEMORY = -1, -2  # in place of the length of a text
# The child imports from the paths of this process.
CHILD_CODE = """import sys
sys.path[:] = sys.argv[1:]
from preprocess.readers.page_process import main
main()"""


class PageTooHard(Exception):
    """A page is longer, or needs more time or memory, than is allowed. The message says which."""


class _Child:
    def __init__(self) -> None:
        self.process = start_child(CHILD_CODE)
        if self._read_number() != READY:
            raise explain_failed_start("reads HTML pages", self.process.communicate()[1])

    def extract(self, page: Buffer) -> bytes:
        """Return the text of a page, both in UTF-8. Raises PageTooHard if the child has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(LENGTH.pack(len(page)))
            self.process.stdin.write(page)
            self.process.stdin.flush()
        num_bytes = self._read_number()
        if num_bytes is not None and num_bytes >= 0:
            text = self.process.stdout.read(num_bytes)
            if len(text) == num_bytes:
                return text
        self.close()
        raise PageTooHard(_explain_end(self.process.returncode, num_bytes == NO_MEMORY))

    def close(self) -> None:
        """End the child."""
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        self.process.wait()

    def _read_number(self) -> int | None:
        assert self.process.stdout is not None
        data = self.process.stdout.read(LENGTH.size)
        return LENGTH.unpack(data)[0] if len(data) == LENGTH.size else None


_children: dict[int, _Child] = {}  # of this process, by its id: a fork must not use the child of another process


def extract_in_child(page: Buffer) -> bytes:
    """Return the main text of an HTML page, both in UTF-8.

    Raises PageTooHard if that needs too much time or memory, FolioError if no child can be started.
    """
    process_id = os.getpid()
    if process_id not in _children:
        _children.clear()
        _children[process_id] = _Child()
    try:
        return _children[process_id].extract(page)
    except BaseException:  # also an interruption, after which the child may still send the text
        _children.pop(process_id).process.kill()
        raise


def check_page_size(num_bytes: int) -> None:
    """Raise PageTooHard if a page has more than MAX_PAGE_BYTES."""
    if num_bytes > MAX_PAGE_BYTES:
        raise PageTooHard(f"has more than {MAX_PAGE_BYTES:,} bytes")


def _explain_end(status: int, is_memory: bool) -> str:
    if is_memory:
        return f"needs more than {MAX_MEMORY_BYTES // 1_000_000:,} MB of memory"
    reason = explain_end(status, MAX_CPU_S, MAX_WAIT_S)
    return reason or f"ends the process that reads it with {name_status(status)}"


@atexit.register
def _end_child() -> None:
    if child := _children.pop(os.getpid(), None):
        child.process.kill()
        child.process.wait()


def main() -> None:
    """Extract the text of each page on stdin. The child process calls this."""
    from preprocess.readers.html_text import extract_main_text

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    extract_main_text("<p>a</p>")  # import the library before memory is limited
    source, target = sys.stdin.buffer, sys.stdout.buffer
    _write(target, READY)
    while len(head := source.read(LENGTH.size)) == LENGTH.size:
        page = source.read(LENGTH.unpack(head)[0]).decode()
        limit_resources(MAX_MEMORY_BYTES, MAX_CPU_S, MAX_WAIT_S)
        try:
            text = extract_main_text(page).encode("utf-8", "replace")
        except (MemoryError, ValueError):  # resiliparse raises a ValueError if its parser gets no memory
            _write(target, NO_MEMORY)
            return
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        _write(target, len(text), text)


def _write(target: IO[bytes], number: int, text: bytes = b"") -> None:
    target.write(LENGTH.pack(number) + text)
    target.flush()
