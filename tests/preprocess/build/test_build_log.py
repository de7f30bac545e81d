"""The memory in build_log.json."""

from __future__ import annotations

import subprocess
import sys

import pytest

SIZE = 200_000_000
CHILD = f"""
from preprocess.build.build_log import get_peak_memory_bytes
print(get_peak_memory_bytes(), len(b"1" * {SIZE}), get_peak_memory_bytes())
"""
PARENT = f"""
import subprocess, sys
len(b"1" * {SIZE})
subprocess.run([sys.executable, "-c", {CHILD!r}], check=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="on other systems the peak is that of getrusage")
def test_peak_memory_is_that_of_the_process_and_not_of_the_one_that_started_it() -> None:
    result = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, check=True)
    before, _, after = map(int, result.stdout.split())
    assert 0 < before < SIZE <= after
