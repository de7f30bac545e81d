"""`preprocess rejects`, and the rejects in the result of `build --json`."""

from __future__ import annotations

import json
from pathlib import Path

from preprocess.build.read_rejects import MAX_SUMMARIZED
from tests.preprocess.cli.checks import Run, check_error

BUILD = ("build", "--input", "a.jsonl", "--tokenizer", "byte", "--val-fraction", "0", "--name", "mine")


def test_rejects_are_printed_with_place_reason_and_record(preprocess: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"text": 5}\n\x1b[31mbad\n{"text": null}\n')
    done = preprocess(*BUILD)
    assert done.returncode == 0 and "`preprocess rejects mine` prints them" in done.stderr
    printed = preprocess("rejects", "mine")
    lines = printed.stdout.splitlines()
    assert len(lines) == 3 and all(line.isprintable() for line in lines)
    assert lines[0].startswith("a.jsonl, byte 17: text must be text, got number") and lines[0].endswith('{"text": 5}')
    assert lines[1].startswith("a.jsonl, byte 29: invalid JSON") and lines[1].endswith(": \\x1b[31mbad")
    assert lines[2] == "a.jsonl, byte 38: text is null"
    entries = [json.loads(line) for line in preprocess("rejects", "mine", "--json").stdout.splitlines()]
    assert [entry["place"] for entry in entries] == ["byte 17", "byte 29", "byte 38"]
    assert entries[1]["record"] == "\x1b[31mbad"
    assert preprocess("rejects", "shards/mine").stdout == printed.stdout


def test_rejects_of_a_build_that_failed_are_printed(preprocess: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": 5}\n{"text": 6}\n')
    done = preprocess(*BUILD)
    check_error(done, 1, "2 malformed; the reason of all 2: text must be text, got number")
    assert len(preprocess("rejects", "mine").stdout.splitlines()) == 2


def test_rejects_without_any_and_of_no_build(preprocess: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n')
    assert preprocess(*BUILD).returncode == 0
    done = preprocess("rejects", "mine")
    assert (done.returncode, done.stdout) == (0, "") and "no rejected records of mine are listed" in done.stderr
    check_error(preprocess("rejects", "nothing"), 2, "there is neither a build")


def test_build_json_lists_rejects_and_limits_them(preprocess: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"text": 5}\n')
    rejects = json.loads(preprocess(*BUILD, "--json").stdout)["rejects"]
    assert rejects["number"] == 1 and rejects["file"].endswith("refused.jsonl")
    assert [(r["source"], r["place"], r["record"]) for r in rejects["records"]] == [
        ("a.jsonl", "byte 17", '{"text": 5}')
    ]
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + '{"text": 5}\n' * (MAX_SUMMARIZED + 50))
    rejects = json.loads(preprocess(*BUILD, "--json", "--replace").stdout)["rejects"]
    assert rejects["number"] == MAX_SUMMARIZED + 50 and len(rejects["records"]) == MAX_SUMMARIZED


def test_estimate_and_tokenizer_train_explain_rejects_as_a_build_does(preprocess: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": 5}\n' * 62)
    reason = "62 malformed; the reason of all 62: text must be text, got number"
    for command in (("estimate",), ("tokenizer", "train", "--output", "tok"), ("tokenizer", "inspect", "byte")):
        done = preprocess(*command, "--input", "a.jsonl")
        check_error(done, 1, reason, "(first at a.jsonl, line 1 (byte 0))")
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' * 9 + "[1]\n")
    reason = "some documents were dropped or repaired: 1 malformed; the reason: expected a JSON object, got array"
    assert reason in preprocess("estimate", "--input", "a.jsonl", "--tokenizer", "byte").stdout
    train = ("tokenizer", "train", "--tokenizer", "char", "--val-fraction", "0", "--output", "tok")
    done = preprocess(*train, "--input", "a.jsonl")
    assert done.returncode == 0 and reason in done.stderr, done.stderr
    assert preprocess("rejects", "./tok").stdout.startswith("a.jsonl, byte 153: expected a JSON object")
