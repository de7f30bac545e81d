"""Text that is piped into a command."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LINES = b"".join(b'{"text": "line %d"}\n' % i for i in range(50))


def run(folder: Path, *arguments: str, data: bytes) -> subprocess.CompletedProcess[bytes]:
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    result = subprocess.run(
        [sys.executable, "-m", "preprocess", *arguments],
        input=data,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": os.getcwd()},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert not list(temporary.iterdir())  # the copy is removed
    return result


@pytest.mark.parametrize("data", [LINES, gzip.compress(LINES)])
def test_piped_text_gives_the_build_of_a_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "stdin").write_bytes(data)
    settings = ["--tokenizer", "byte", "--workers", "2"]
    for name, arguments in (("piped", ["--input", "-"]), ("file", ["--input", "stdin", "--format", "jsonl"])):
        result = run(tmp_path, "build", *arguments, "--name", name, *settings, data=data)
        assert result.returncode == 0, result.stderr
    piped, file = (json.loads((tmp_path / f"shards/{name}/manifest.json").read_text()) for name in ("piped", "file"))
    assert piped["build_id"] == file["build_id"] and piped["sources"][0]["name"] == "stdin"


def test_piped_text_is_counted_by_an_estimate(tmp_path: Path) -> None:
    result = run(tmp_path, "estimate", "--input", "-", "--tokenizer", "byte", data=LINES)
    assert result.returncode == 0 and b"50" in result.stdout, result.stderr


def test_standard_input_beside_other_files_is_an_error(tmp_path: Path) -> None:
    result = run(tmp_path, "build", "--input", "-", "--input", "x.txt", "--name", "x", data=b"text")
    assert (result.returncode, result.stderr.splitlines()[-1]) == (
        2, b"error: --input - is standard input, which cannot be read together with other files",
    )  # fmt: skip
