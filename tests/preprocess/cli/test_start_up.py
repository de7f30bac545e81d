"""What the command imports: a small build must not wait for libraries that it does not need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """import sys
sys.argv = ["preprocess", *sys.argv[1:]]
from preprocess.__main__ import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""
OPTIONS = ("--document", "line", "--tokenizer", "gpt2")
READING = {"numpy", "pyarrow"}
NEVER = {"torch", "pandas", "transformers", "datasets", "matplotlib", "scipy"}
LARGE_ONLY = {"awkward", "multiprocessing.connection", "asyncio", "fsspec"}  # a small build needs none of them


def imported_by(*arguments: str) -> set[str]:
    result = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    return set(result.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(("arguments", "left_out"), [(["--help"], READING), (["list"], {"pyarrow"})])
def test_command_without_input_imports_no_library_of_readers(arguments: list[str], left_out: set[str]) -> None:
    assert not imported_by(*arguments) & (left_out | NEVER | LARGE_ONLY)


def test_small_build_imports_only_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"This is line {i}.\n" for i in range(500)))
    output = tmp_path / "build"
    found = imported_by("build", "--input", str(tmp_path / "a.txt"), *OPTIONS, "--output", str(output))
    assert {"gigatoken", *READING} <= found
    assert not found & (NEVER | LARGE_ONLY)
