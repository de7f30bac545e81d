"""`preprocess list`, `show`, `stats`, `verify` and `corpora`."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from preprocess.cli.main import main
from preprocess.cli.show_document import DecodedDocument
from preprocess.shards.files import readable_json, sha256_bytes
from preprocess.shards.format import Build, seal
from preprocess.tokenizers.decode_build import DocumentPart
from tests.preprocess.cli.checks import TINY, Run, check_error


def test_unknown_version_and_truncated_shard_have_status_1(preprocess: Run, tmp_path: Path) -> None:
    preprocess(*TINY)
    folder = tmp_path / "shards/synthetic"
    good = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(readable_json(json.loads(good) | {"version": 99}))
    for command in (("show", "synthetic"), ("verify", "synthetic"), TINY):
        check_error(preprocess(*command), 1, "version 99", "reads version 1")
    assert "damaged: " in preprocess("list").stdout
    (folder / "manifest.json").write_bytes(good)
    os.truncate(folder / "val-00000.bin", 3)
    for command in (("show", "synthetic"), ("verify", "synthetic"), TINY):
        check_error(preprocess(*command), 1, "val-00000.bin has 3 bytes, its manifest says")


def test_verify_names_the_damaged_file(preprocess: Run, tmp_path: Path) -> None:
    preprocess(*TINY)
    path = tmp_path / "shards/synthetic/train-00000.bin"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    done = preprocess("verify", "synthetic")
    check_error(done, 1, "shards/synthetic is damaged (1 fault, listed above)")
    assert done.stderr.splitlines()[0].startswith("train-00000.bin has sha256")


def test_verify_lists_texts_that_are_in_both_splits(preprocess: Run, tmp_path: Path) -> None:
    preprocess(*TINY)
    done = preprocess("verify", "synthetic", "--leaks")
    assert done.returncode == 0 and done.stdout.splitlines()[1] == "no text is in both train and val"
    assert json.loads(preprocess("verify", "synthetic", "--leaks", "--json").stdout)["leaks"]["num_texts"] == 0
    lines = [json.dumps({"text": f"text {i % 30}", "side": "train" if i < 30 else "val"}) for i in range(60)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    options = "--no-dedup --tokenizer byte --split given --split-column side"
    built = preprocess("build", "--input", "texts.jsonl", "--name", "leaky", *options.split())
    assert built.returncode == 0, built.stderr
    done = preprocess("verify", "leaky", "--leaks")
    check_error(done, 1, "30 texts of shards/leaky are in both train and val", "build with --dedup")
    example = re.compile(r"train document (\d+) \(train-00000\.bin\) = val document \1 \(val-00000\.bin\)")
    assert len(done.stderr.splitlines()) == 6 and all(map(example.fullmatch, done.stderr.splitlines()[:5]))
    assert done.stdout.startswith("shards/leaky is intact")
    assert preprocess("verify", "leaky").returncode == 0


def test_folio_shards_replaces_the_default_root(preprocess: Run, tmp_path: Path) -> None:
    env = {"FOLIO_SHARDS": str(tmp_path / "elsewhere")}
    preprocess(*TINY, env=env)
    assert (tmp_path / "elsewhere/synthetic/manifest.json").is_file() and not (tmp_path / "shards").exists()
    assert "synthetic" in preprocess("list", env=env).stdout
    check_error(preprocess("show", "other", env=env), 2, f"{tmp_path}/elsewhere/other and shards/other")


def test_show_writes_utf8_to_a_pipe_in_every_locale(preprocess: Run) -> None:
    preprocess(*TINY)
    for encoding in ("ascii", "cp1252", "utf-8"):
        done = preprocess("show", "synthetic", "--document", "1", env={"PYTHONIOENCODING": encoding})
        assert done.returncode == 0 and re.search("[а-я]", done.stdout), done.stderr


def test_show_decodes_a_document(preprocess: Run, tmp_path: Path) -> None:
    preprocess(*TINY)
    done = preprocess("show", "synthetic", "--document", "0")
    where, front, back = done.stderr.splitlines()
    record = Build(tmp_path / "shards/synthetic").docs("train")[0]
    assert where == f"document 0 of train: position {record['position']} of synthetic.toml"
    assert front.startswith("<author_") and "> <year_" in front and back == "<|endoftext|>"
    ids = Build(tmp_path / "shards/synthetic").document("train", 0)
    assert done.stdout.encode() == bytes(ids[3:-1].tolist())
    check_error(preprocess("show", "synthetic", "--document", "9999", "--split", "val"), 2, "it has 8, counted from 0")


def test_show_reports_an_invalid_token_id(preprocess: Run, tmp_path: Path) -> None:
    preprocess(*TINY)
    path = tmp_path / "shards/synthetic/train-00000.bin"
    data = bytearray(path.read_bytes())
    data[20:22] = b"\xff\xff"
    path.write_bytes(data)
    check_error(
        preprocess("show", "synthetic", "--document", "0"),
        1,
        "is not in the vocabulary of this tokenizer",
        "preprocess verify",
    )


def test_stats_prints_lines_or_the_file(preprocess: Run, tmp_path: Path) -> None:
    preprocess(*TINY)
    lines = preprocess("stats", "synthetic").stdout.splitlines()
    assert lines[0] == "documents   80 read, 0 empty, 0 duplicates, 80 kept"
    table = {line.split()[0]: line.split()[1:] for line in lines[4:8]}
    assert (
        set(table) == {"train", "val", "en", "ru"}
        and table["train"][0] == "72"
        and table["en"][0] == table["ru"][0] == "40"
    )
    manifest = Build(tmp_path / "shards/synthetic").manifest
    assert table["val"][1] == f"{manifest.splits['val'].tokens:,}"
    assert any(line.startswith("author ") and "most often" in line for line in lines)
    done = preprocess("stats", "synthetic", "--json")
    assert done.stdout == (tmp_path / "shards/synthetic/stats.json").read_text()
    (tmp_path / "shards/synthetic/stats.json").write_text("{}")
    check_error(preprocess("stats", "synthetic"), 1, "stats.json does not have the sha256 in its manifest")


def test_stats_that_no_builder_writes_are_one_line(preprocess: Run, tmp_path: Path) -> None:
    preprocess(*TINY)
    folder = tmp_path / "shards/synthetic"
    manifest, stats = json.loads((folder / "manifest.json").read_bytes()), (folder / "stats.json").read_bytes()
    for data in (
        b"{}",
        b"[]",
        b"[" * 100_000,
        stats.replace(b'"read": 80', b'"read": "\\u001b[31m"'),
        stats.replace(b'"documents": ', b'"documents": [], "x": '),
        stats.replace(b'"tokens": ', b'"tokens": 1e400, "y": '),
    ):
        (folder / "stats.json").write_bytes(data)
        sealed = seal(manifest | {"stats_sha256": sha256_bytes(data)})
        (folder / "manifest.json").write_bytes(readable_json(sealed))
        check_error(preprocess("stats", "synthetic"), 1, "stats.json is malformed", "copy the build again")


def test_corpora_lists_size_and_licence(preprocess: Run) -> None:
    lines = preprocess("corpora").stdout.splitlines()
    assert lines[0].split() == ["name", "licence", "size", "description"]
    assert any(
        line.split()[:6] == ["tinyshakespeare", "public", "domain", "1,115,394", "bytes", "40,000"] for line in lines
    )
    assert any(line.split()[:4] == ["synthetic", "public", "domain", "generated"] for line in lines)
    assert any(line.startswith("synth ") and "copied from hf://datasets/PleIAs/SYNTH/" in line for line in lines)


def test_list_without_builds_says_so(preprocess: Run) -> None:
    done = preprocess("list")
    assert done.returncode == 0 and "no builds in shards" in done.stderr


def test_show_prints_the_turns_of_a_chat(preprocess: Run, tmp_path: Path) -> None:
    record = {"prompt": "Say hi <|user_end|>\x1b", "completion": "hi"}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    preprocess("build", "--input", tmp_path / "a.jsonl", "--name", "chat", "--val-fraction", "0", "--clean", "none")
    expected = "<|user_start|>Say hi <|user_end|>\x1b<|user_end|><|assistant_start|>hi<|assistant_end|><|endoftext|>"
    assert preprocess("show", "chat", "--document", "0").stdout == expected
    found = json.loads(preprocess("show", "chat", "--document", "0", "--json").stdout)
    assert [part["text"] for part in found["parts"] if part["is_learnt"]] == ["hi", "<|assistant_end|>"]
    assert [part["text"] for part in found["parts"] if not part["is_control"]] == ["Say hi <|user_end|>\x1b", "hi"]
    assert (
        "in the loss mask, with the chat template nanochat: 2 of train, 0 of val" in preprocess("stats", "chat").stdout
    )


def test_show_colours_what_is_learnt_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    parts = [DocumentPart(b"<|end|>", True, False), DocumentPart(b"hi\x1b[2J", False, True)]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    DecodedDocument(parts, has_chats=True).print(quiet=False)
    assert capsys.readouterr().out == "\x1b[2m<|end|>\x1b[0m\x1b[32m\x1b[22mhi\\x1b[2J\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    DecodedDocument(parts, has_chats=True).print(quiet=False)
    assert capsys.readouterr().out == "<|end|>hi\\x1b[2J"


def test_show_finds_a_document_by_its_text(build_text: Any) -> None:
    lines = [f"line {i} \x1b[31m<|endoftext|>" for i in range(40)]
    build = build_text("\n".join(lines), split="exact", document="line", clean=(), shard_tokens=100)
    for split in ("train", "val"):
        number = build.manifest.splits[split].documents - 1
        position = int(build.docs(split)["position"][number])
        arguments = ["show", str(build.folder), "--split", split, "--find", f"line {position} "]
        found = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
        assert (found["document"], found["position"], found["text"]) == (number, position, lines[position])
        assert found["source"] == build.manifest.sources[0]["name"]
        result = CliRunner().invoke(main, arguments)
        assert (
            result.stderr.splitlines()[0] == f"document {number} of {split}: position {position} of {found['source']}"
        )


def test_show_says_that_no_document_has_the_text(build_text: Any) -> None:
    build = build_text("one\ntwo\n", split="exact", document="line", val_fraction=0)
    result = CliRunner().invoke(main, ["show", str(build.folder), "--find", "three\x1b[31m"])
    assert result.exit_code == 1 and "no document of the train split of own contains" in result.stderr
    assert "\x1b" not in result.stderr
    result = CliRunner().invoke(main, ["show", str(build.folder), "--find", "one", "--document", "0"])
    assert result.exit_code == 2 and "--document and --find both choose a document" in result.stderr
    result = CliRunner().invoke(main, ["show", str(build.folder), "--find", ""])
    assert result.exit_code == 2 and "--find is empty" in result.stderr
