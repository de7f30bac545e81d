"""`preprocess build`: what it prints, how it ends, and which options change the build."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from preprocess.shards.format import Build
from tests.conftest import ROOT, VERSE
from tests.preprocess.cli.checks import TINY, Run, check_error


def test_build_prints_progress_on_stderr_unless_quiet(preprocess: Run) -> None:
    loud = preprocess("build", "--corpus", "synthetic", "--num-pairs", "400", "--num-pieces", "500")
    assert "training 500 SentencePiece pieces on 720 training documents" in loud.stderr
    assert (
        re.search(r"^prepare: .*, \d+\.\d s, .*, 800 documents$", loud.stderr, re.MULTILINE) and "\r" not in loud.stderr
    )
    assert re.search(r"^write_shards: ([\d,]+) of \1 tokens, ", loud.stderr, re.MULTILINE)
    assert "training" not in loud.stdout
    silent = preprocess(
        "build", "--corpus", "synthetic", "--num-pairs", "400", "--num-pieces", "500", "--name", "other", "--json"
    )
    assert silent.stderr == "" and json.loads(silent.stdout)["splits"]["train"]["documents"] == 720


def test_build_then_list_show_verify(preprocess: Run, tmp_path: Path) -> None:
    built = preprocess(*TINY)
    assert built.returncode == 0 and built.stderr == "" and built.stdout.startswith("built shards/synthetic\n")
    assert preprocess(*TINY).stdout.startswith("already built, nothing to do: shards/synthetic\n")
    listed = preprocess("list").stdout.splitlines()
    assert listed[0].split() == ["name", "tokenizer", "vocabulary", "train", "tokens", "val", "tokens", "documents"]
    assert listed[1].split()[:2] == ["synthetic", "byte"] and listed[1].split()[-1] == "80"
    build_id = Build(tmp_path / "shards/synthetic").build_id
    assert build_id in preprocess("show", "synthetic").stdout
    assert preprocess("verify", "shards/synthetic").stdout == f"shards/synthetic is intact: build {build_id}\n"


def test_build_without_network_fails_quickly(preprocess: Run, tmp_path: Path) -> None:
    done = preprocess("build", "--corpus", "tinyshakespeare", env={"FOLIO_CACHE": str(tmp_path / "none")}, timeout=60)
    check_error(done, 1, "could not get tinyshakespeare/input.txt", "no connection", "--source FILE")
    assert not (tmp_path / "shards/tinyshakespeare").exists()


def test_build_rejects_a_source_with_another_hash(preprocess: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(VERSE)
    check_error(
        preprocess("build", "--corpus", "tinyshakespeare", "--source", "mine.txt"),
        1,
        "mine.txt has sha256",
        "expected 86c4e6",
    )


def test_build_rejects_an_output_that_is_a_file_or_in_one(preprocess: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in ("file", "file/x", "file/x/y"):
        check_error(preprocess(*TINY, "--output", output), 2, "/file is a file; pass a directory")


def test_build_into_the_current_folder_leaves_no_temporary_files(preprocess: Run, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    done = preprocess(*TINY, "--output", "here/.")
    assert done.returncode == 0 and (tmp_path / "here/manifest.json").is_file()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("..")] == []


def test_build_fails_while_another_build_of_the_name_runs(preprocess: Run, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    with filelock.FileLock(tmp_path / "shards/.synthetic.lock"):
        check_error(preprocess(*TINY), 1, "another build of", "is running; wait for it, or choose another --name")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, in which no file can be made")
def test_build_in_a_folder_that_takes_no_files_is_explained(preprocess: Run) -> None:
    check_error(preprocess(*TINY, "--output", "/proc/x"), 2, "no file can be made in /proc; choose another --output")
    assert preprocess(*TINY).returncode == 0


def test_build_survives_a_closed_stderr(preprocess: Run, tmp_path: Path) -> None:
    program = "from preprocess import console; console.FIRST_LINE_S = 0; from preprocess.__main__ import main; main()"
    command = [sys.executable, "-c", program, *TINY[:-1]]  # a fast build would print nothing on stderr
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=full
        )
    assert done.returncode == 0 and (tmp_path / "shards/synthetic/manifest.json").is_file()


def test_build_applies_the_cleaning_rules_of_clean(preprocess: Run, tmp_path: Path) -> None:
    for rules, expected in (("none", {}), ("nfc,trim", {"nfc": 0, "trim": 0})):
        assert preprocess(*TINY, "--clean", rules, "--replace").returncode == 0
        assert json.loads(preprocess("stats", "synthetic", "--json").stdout)["clean"] == expected
    check_error(preprocess(*TINY, "--clean", "nfc,shine"), 2, "clean must be a list of", "html_entities", "got 'shine'")


def test_build_reads_escapes_in_template_and_separator(preprocess: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"q": f"q{i}", "a": f"\\n{i}"}) for i in range(4)))
    template = r"Q: {q}\nA: {a}\\n"
    done = preprocess(
        "build",
        "--input",
        "a.jsonl",
        "--template",
        template,
        "--tokenizer",
        "byte",
        "--val-fraction",
        "0.5",
        "--name",
        "x",
    )
    assert done.returncode == 0, done.stderr
    found = {preprocess("show", "x", "--document", n, "--split", s).stdout for s in ("train", "val") for n in "01"}
    assert found == {f"Q: q{i}\nA: \\n{i}\\n" for i in range(4)}
    (tmp_path / "b.txt").write_text("one\n--\ntwo\n--\nthree")
    separated = (
        "--document",
        "separator",
        "--separator",
        r"\n--\n",
        "--tokenizer",
        "byte",
        "--val-fraction",
        "0.3",
        "--name",
        "y",
        "--json",
    )
    assert json.loads(preprocess("build", "--input", "b.txt", *separated).stdout)["splits"]["train"]["documents"] == 2


def test_separator_that_divides_no_file_is_warned_about(preprocess: Run, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_bytes(f"{name} one\r\n--\r\n{name} two\r\n--\r\n".encode())
    (tmp_path / "empty.txt").touch()
    flags = ("--input", "*.txt", "--document", "separator", "--tokenizer", "byte", "--val-fraction", "0.5")
    done = preprocess("build", *flags, "--separator", r"\n--\n", "--name", "x")
    assert done.returncode == 0, done.stderr
    warning = r"the separator '\n--\n' does not divide any of the 3 files; compare it with the text; if their lines end"
    assert warning in done.stderr
    done = preprocess("build", *flags, "--separator", r"\r\n--\r\n", "--name", "y", "--json")
    splits = json.loads(done.stdout)["splits"]
    assert [splits[split]["documents"] for split in ("train", "val")] == [2, 2] and "separator" not in done.stderr


def test_bos_begins_each_document_with_the_token(preprocess: Run, tmp_path: Path) -> None:
    small = ("--corpus", "synthetic", "--num-pairs", "200", "--tokenizer", "sentencepiece", "--num-pieces", "500")
    for name, options, expected in (
        ("with", ("--bos", "--no-authors"), ["<bos>"]),
        ("without", ("--no-bos", "--no-authors"), []),
    ):
        assert preprocess("build", *small, *options, "--name", name).returncode == 0
        shown = json.loads(preprocess("show", name, "--document", "0", "--json").stdout)
        assert shown["control_before"] == expected, name
    done = preprocess("build", "--corpus", "synthetic", "--tokenizer", "gpt2", "--bos")
    assert done.returncode == 2 and "bos has no effect" in done.stderr and "leave --bos out" in done.stderr


def test_no_authors_writes_the_text_only(preprocess: Run, tmp_path: Path) -> None:
    rows = [{"text": f"document {i}", "writer": f"Author {i % 3}"} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--author-column", "writer", "--no-authors", "--eot", "none", "--tokenizer", "byte", "--name", "plain")
    done = preprocess("build", "--input", "rows.jsonl", *options)
    assert done.returncode == 0, done.stderr
    build = Build(tmp_path / "shards" / "plain")
    texts = {build.document(split, n).astype("u1").tobytes().decode() for split, n in
             [("val", 0), ("val", 1), *(("train", n) for n in range(18))]}  # fmt: skip
    assert texts == {row["text"] for row in rows} and build.vocab_size == 256
