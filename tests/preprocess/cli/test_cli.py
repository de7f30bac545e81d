"""The command as a person meets it: what it prints, how it ends, and one clear line for each mistake."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest

from preprocess.shards.files import readable_json
from preprocess.shards.format import Build
from tests.conftest import ROOT, VERSE

Run = Callable[..., subprocess.CompletedProcess]
TINY = ("build", "--corpus", "synthetic", "--num-pairs", "40", "--tokenizer", "byte", "--quiet")


def check_refused(done: subprocess.CompletedProcess, status: int, *wanted: str) -> None:
    """It ended with `status` and one last line that says all of `wanted`."""
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.lower().startswith("error: "), last
    for words in wanted:
        assert words in last, last


def test_the_way_of_a_build(preprocess: Run, tmp_path: Path) -> None:
    built = preprocess(*TINY)
    assert built.returncode == 0 and built.stderr == "" and built.stdout.startswith("built shards/synthetic\n")
    assert preprocess(*TINY).stdout.startswith("already built, nothing to do: shards/synthetic\n")
    listed = preprocess("list").stdout.splitlines()
    assert listed[0].split() == ["name", "tokenizer", "vocabulary", "train", "tokens", "val", "tokens", "documents"]
    assert listed[1].split()[:2] == ["synthetic", "byte"] and listed[1].split()[-1] == "80"
    build_id = Build(tmp_path / "shards/synthetic").build_id
    assert build_id in preprocess("show", "synthetic").stdout
    assert preprocess("verify", "shards/synthetic").stdout == f"shards/synthetic is whole: build {build_id}\n"


def test_show_decodes_a_document(preprocess: Run, tmp_path: Path) -> None:
    preprocess(*TINY)
    done = preprocess("show", "synthetic", "--document", "0")
    front, back = done.stderr.splitlines()
    assert front.startswith("<author_") and "> <year_" in front and back == "<|endoftext|>"
    ids = Build(tmp_path / "shards/synthetic").document("train", 0)
    assert done.stdout.encode() == bytes(ids[3:-1].tolist())
    check_refused(
        preprocess("show", "synthetic", "--document", "9999", "--split", "val"), 2, "it has 8, counted from 0"
    )


def test_progress_is_on_stderr_and_quiet_is_quiet(preprocess: Run) -> None:
    loud = preprocess("build", "--corpus", "synthetic", "--num-pairs", "400", "--num-pieces", "500")
    assert "training 500 SentencePiece pieces on 720 training documents" in loud.stderr
    assert re.search(r"^prepare: .*, 800 documents, \d+\.\d s, ", loud.stderr, re.MULTILINE) and "\r" not in loud.stderr
    assert re.search(r"^assemble: ([\d,]+) of \1 tokens, ", loud.stderr, re.MULTILINE)
    assert "training" not in loud.stdout
    silent = preprocess(
        "build", "--corpus", "synthetic", "--num-pairs", "400", "--num-pieces", "500", "--name", "other", "--json"
    )
    assert silent.stderr == "" and json.loads(silent.stdout)["splits"]["train"]["documents"] == 720


def test_help_names_everything(preprocess: Run) -> None:
    text = preprocess("--help").stdout
    assert all(
        command in text
        for command in ("build", "corpora", "export", "estimate", "list", "show", "stats", "tokenizer", "verify")
    )
    assert "[default: the corpus, or own]" in " ".join(preprocess("build", "-h").stdout.split())
    assert preprocess("--version").stdout.startswith("preprocess, version ")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("build", "--corpus", "tinyshakespear"), "did you mean 'tinyshakespeare'"),
        (("build", "--corpus", "synthetic", "--name", "../x"), "choose another name"),
        (("build", "--corpus", "synthetic", "--val-fraction", "2"), "wanted a number between 0 and 1"),
        (("build", "--corpus", "synthetic", "--name", ""), "choose another name"),
        (("build", "--corpus", "synthetic", "--tokenizer", "byte", "--num-pieces", "900"), "num_pieces has no effect"),
        (("build", "--corpus", "synthetic", "--num-pieces", "9"), "num_pieces is 9, wanted 300 to 64,000"),
        (("build", "--corpus", "synthetic", "--source", "x"), "--source stands for one file"),
        (("build", "--corpus", "tinyshakespeare", "--source", "nowhere.txt"), "nowhere.txt is not a file"),
        (
            ("build",),
            "nothing to build from: pass --corpus NAME, or --input with your own files; `preprocess build --help` tells what there is",
        ),
        (("build", "--corpse", "x"), "--corpus"),
        (("show", "nothing"), "no build 'nothing': no manifest.json in shards/nothing"),
        (("show", "no/thing"), "no manifest.json in no/thing"),
        (("export", "nothing", "--format", "nanogpt", "--output", "o"), "no build"),
    ],
)
def test_misuse_has_status_2(preprocess: Run, arguments: tuple[str, ...], wanted: str) -> None:
    check_refused(preprocess(*arguments), 2, wanted)


def test_no_network_is_status_1_and_soon(preprocess: Run, tmp_path: Path) -> None:
    done = preprocess("build", "--corpus", "tinyshakespeare", env={"FOLIO_CACHE": str(tmp_path / "none")}, timeout=60)
    check_refused(done, 1, "could not get tinyshakespeare/input.txt", "no connection", "--source FILE")
    assert not (tmp_path / "shards/tinyshakespeare").exists()


def test_a_wrong_file_is_status_1(preprocess: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(VERSE)
    check_refused(
        preprocess("build", "--corpus", "tinyshakespeare", "--source", "mine.txt"),
        1,
        "mine.txt has sha256",
        "wanted 86c4e6",
    )


def test_a_manifest_of_version_99_and_a_cut_shard_are_status_1(preprocess: Run, tmp_path: Path) -> None:
    preprocess(*TINY)
    folder = tmp_path / "shards/synthetic"
    good = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(readable_json(json.loads(good) | {"version": 99}))
    for command in (("show", "synthetic"), ("verify", "synthetic"), TINY):
        check_refused(preprocess(*command), 1, "version 99", "reads version 1")
    assert "damaged: " in preprocess("list").stdout
    (folder / "manifest.json").write_bytes(good)
    os.truncate(folder / "val-00000.bin", 3)
    for command in (("show", "synthetic"), ("verify", "synthetic"), TINY):
        check_refused(preprocess(*command), 1, "val-00000.bin has 3 bytes, its manifest says")


def test_verify_names_what_is_damaged(preprocess: Run, tmp_path: Path) -> None:
    preprocess(*TINY)
    path = tmp_path / "shards/synthetic/train-00000.bin"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    done = preprocess("verify", "synthetic")
    check_refused(done, 1, "shards/synthetic is damaged, 1 faults above")
    assert done.stderr.splitlines()[0].startswith("train-00000.bin has sha256")


def test_a_folder_that_may_not_be_written(preprocess: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_refused(preprocess(*TINY, "--output", "file/x"), 1, "file")
    check_refused(preprocess(*TINY, "--output", "file"), 2, "is a file; name a folder")


def test_folio_shards_moves_everything(preprocess: Run, tmp_path: Path) -> None:
    env = {"FOLIO_SHARDS": str(tmp_path / "elsewhere")}
    preprocess(*TINY, env=env)
    assert (tmp_path / "elsewhere/synthetic/manifest.json").is_file() and not (tmp_path / "shards").exists()
    assert "synthetic" in preprocess("list", env=env).stdout
    check_refused(preprocess("show", "other", env=env), 2, f"{tmp_path}/elsewhere/other and shards/other")


def test_show_gives_a_pipe_the_bytes_whatever_the_locale(preprocess: Run) -> None:
    preprocess(*TINY)
    for encoding in ("ascii", "cp1252", "utf-8"):
        done = preprocess("show", "synthetic", "--document", "1", env={"PYTHONIOENCODING": encoding})
        assert done.returncode == 0 and re.search("[а-я]", done.stdout), done.stderr


def test_a_build_in_the_folder_one_stands_in(preprocess: Run, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    done = preprocess(*TINY, "--output", "here/.")
    assert done.returncode == 0 and (tmp_path / "here/manifest.json").is_file()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("..")] == []


def test_two_builds_of_one_name_at_once(preprocess: Run, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    with filelock.FileLock(tmp_path / "shards/.synthetic.lock"):
        check_refused(preprocess(*TINY), 1, "another build of", "is running; wait for it, or choose another --name")
    assert preprocess(*TINY).returncode == 0


def test_a_flipped_token_is_told_when_it_is_decoded(preprocess: Run, tmp_path: Path) -> None:
    preprocess(*TINY)
    path = tmp_path / "shards/synthetic/train-00000.bin"
    data = bytearray(path.read_bytes())
    data[20:22] = b"\xff\xff"
    path.write_bytes(data)
    check_refused(preprocess("show", "synthetic", "--document", "0"), 1, "stands for no text", "preprocess verify")


def test_a_build_is_not_lost_with_the_terminal(preprocess: Run, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "preprocess", *TINY[:-1]]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=full
        )
    assert done.returncode == 0 and (tmp_path / "shards/synthetic/manifest.json").is_file()


def test_stats_for_a_person_and_for_a_program(preprocess: Run, tmp_path: Path) -> None:
    preprocess(*TINY)
    lines = preprocess("stats", "synthetic").stdout.splitlines()
    assert lines[0] == "documents   80 read, 0 empty, 0 duplicates, 80 kept"
    table = {line.split()[0]: line.split()[1:] for line in lines[4:8]}
    assert (
        set(table) == {"train", "val", "en", "ru"}
        and table["train"][0] == "72"
        and table["en"][0] == table["ru"][0] == "40"
    )
    m = Build(tmp_path / "shards/synthetic").manifest
    assert table["val"][1] == f"{m['splits']['val']['tokens']:,}"
    assert any(line.startswith("author ") and "most often" in line for line in lines)
    done = preprocess("stats", "synthetic", "--json")
    assert done.stdout == (tmp_path / "shards/synthetic/stats.json").read_text()
    (tmp_path / "shards/synthetic/stats.json").write_text("{}")
    check_refused(preprocess("stats", "synthetic"), 1, "stats.json is not the file its manifest vouches for")


def test_corpora_are_listed_with_size_and_licence(preprocess: Run) -> None:
    lines = preprocess("corpora").stdout.splitlines()
    assert lines[0].split() == ["name", "licence", "size", "what", "it", "is"]
    assert any(
        line.split()[:6] == ["tinyshakespeare", "public", "domain", "1,115,394", "bytes", "40,000"] for line in lines
    )
    assert any(line.split()[:4] == ["synthetic", "public", "domain", "generated"] for line in lines)
    assert any(line.startswith("synth ") and "--input with the Parquet files of PleIAs/SYNTH" in line for line in lines)


def test_cleaning_rules_are_switched(preprocess: Run, tmp_path: Path) -> None:
    for rules, expected in (("none", {}), ("nfc,trim", {"nfc": 0, "trim": 0})):
        assert preprocess(*TINY, "--clean", rules, "--replace").returncode == 0
        assert json.loads(preprocess("stats", "synthetic", "--json").stdout)["clean"] == expected
    check_refused(preprocess(*TINY, "--clean", "nfc,shine"), 2, "no cleaning rule is called 'shine'", "html_entities")


def test_no_builds_is_said(preprocess: Run) -> None:
    done = preprocess("list")
    assert done.returncode == 0 and "no builds in shards" in done.stderr


def test_escape_sequences_are_shown_not_obeyed(preprocess: Run, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    done = preprocess("show", "evil\x1b[2J")
    assert done.returncode == 2 and "\x1b" not in done.stderr


def test_a_line_feed_can_be_typed_in_a_shell(preprocess: Run, tmp_path: Path) -> None:
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
