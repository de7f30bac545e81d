"""Rules that hold for every command: help, version, spellings of options, --quiet, --json,
errors.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from preprocess.cli.build import build
from preprocess.cli.main import main
from tests.conftest import ROOT
from tests.preprocess.cli.checks import TINY, Run, check_error


def list_commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from list_commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = list(list_commands(main))
OPTIONS_WITH_DASHES = [
    (path, option)
    for path, command in COMMANDS
    for option in command.params
    if isinstance(option, click.Option) and any("-" in name.lstrip("-") for name in option.opts)
]


def parse(path: tuple[str, ...], *arguments: str) -> dict[str, object]:
    """Return the options that click finds in `arguments`, before it converts their values."""
    ctx, command = click.Context(main, **main.context_settings), main
    for name in path:
        command = command.commands[name]
        ctx = click.Context(command, parent=ctx)
    options, rest, _ = command.make_parser(ctx).parse_args(list(arguments))
    assert not rest
    names = {option.name for option in command.params if isinstance(option, click.Option)}
    return {name: value for name, value in options.items() if name in names}


def test_commands_are_all_known() -> None:
    assert {" ".join(path) for path, _ in COMMANDS} == {
        "build", "corpora", "diff", "estimate", "export", "filter train", "filter try", "import", "list", "merge",
        "pack", "pull", "push", "rejects", "report", "show", "stats", "tokenizer inspect", "tokenizer train", "unpack",
        "verify",
    }  # fmt: skip
    assert len(OPTIONS_WITH_DASHES) > 60


@pytest.mark.parametrize(
    ("path", "option"), OPTIONS_WITH_DASHES, ids=[" ".join((*path, o.opts[0])) for path, o in OPTIONS_WITH_DASHES]
)
def test_underscores_in_options_mean_dashes(path: tuple[str, ...], option: click.Option) -> None:
    for name in (*option.opts, *option.secondary_opts):
        with_underscores = "--" + name.removeprefix("--").replace("-", "_")
        if option.is_flag:
            forms = [[name], [with_underscores]]
        else:
            forms = [[name, "5"], [f"{name}=5"], [with_underscores, "5"], [f"{with_underscores}=5"]]
        found = [parse(path, *form) for form in forms]
        assert list(found[0]) == [option.name] and all(options == found[0] for options in found)


@pytest.mark.parametrize("value", ["a_b-c", "--", "--a_b", "--max_documents=5", "_"])
def test_values_keep_their_underscores(value: str) -> None:
    for form in (("--separator", value), (f"--separator={value}",)):
        assert parse(("build",), *form, "--max_documents", "5") == {"separator": value, "max_documents": "5"}


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) for path, _ in COMMANDS])
def test_every_command_has_the_common_options(path: tuple[str, ...], command: click.Command) -> None:
    names = {name for option in command.params for name in option.opts}
    assert {"--version", "--quiet", "--json"} <= names
    version = CliRunner().invoke(main, [*path, "--version"])
    assert version.exit_code == 0 and version.output.startswith("preprocess, version ")
    for flag in ("-h", "--help"):
        shown = CliRunner().invoke(main, [*path, flag], prog_name="preprocess")
        assert shown.exit_code == 0 and shown.output.startswith(f"Usage: preprocess {' '.join(path)} ")


def test_help_lists_commands_and_defaults(preprocess: Run) -> None:
    text = preprocess("--help").stdout
    assert all(
        command in text
        for command in ("build", "corpora", "export", "estimate", "list", "show", "stats", "tokenizer", "verify")
    )
    assert "[default: the name of the corpus, or 'own']" in " ".join(preprocess("build", "-h").stdout.split())
    assert preprocess("--version").stdout.startswith("preprocess, version ")


@pytest.mark.parametrize("group", [(), ("filter",), ("tokenizer",)])
def test_group_without_arguments_prints_its_help(preprocess: Run, group: tuple[str, ...]) -> None:
    done = preprocess(*group)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == preprocess(*group, "--help").stdout and "Commands:\n" in done.stdout
    assert preprocess(*group, "--version").stdout.startswith("preprocess, version ")


def test_json_and_quiet_work_on_every_command(preprocess: Run, tmp_path: Path) -> None:
    """Each command prints one JSON value and nothing on stderr. `rejects` prints a value for each record."""
    for name in ("like", "unlike"):
        (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"text": "{name} {i}"}}\n' for i in range(12)))
    runs = {
        "build": TINY,
        "corpora": ("corpora",),
        "estimate": ("estimate", "--corpus", "synthetic", "--num-pairs", "40", "--tokenizer", "byte"),
        "export": ("export", "synthetic", "--format", "nanogpt", "--output", "exported"),
        "report": ("report", "synthetic", "--output", "report.html"),
        "filter train": ("filter", "train", "--like", "like.jsonl", "--unlike", "unlike.jsonl", "--out", "model"),
        "filter try": ("filter", "try", "word_count", "--corpus", "synthetic", "--num-pairs", "40"),
        "list": ("list",),
        "pack": ("pack", "synthetic"),
        "push": ("push", "synthetic", "copies/synthetic"),
        "pull": ("pull", "copies/synthetic"),
        "unpack": ("unpack", "synthetic.tar.zst"),
        "show": ("show", "synthetic"),
        "show --document": ("show", "synthetic", "--document", "0"),
        "stats": ("stats", "synthetic"),
        "tokenizer inspect": ("tokenizer", "inspect", "synthetic"),
        "tokenizer train": ("tokenizer", "train", "--corpus", "synthetic", "--num-pairs", "40", "--tokenizer", "char",
                            "--output", "characters"),
        "verify": ("verify", "synthetic"),
        "diff": ("diff", "synthetic", "synthetic"),
        "import": ("import", "exported", "--format", "nanogpt", "--tokenizer", "shards/synthetic", "--name", "back"),
        "merge": ("merge", "synthetic", "back", "--name", "merged"),
    }  # fmt: skip
    assert {" ".join(path) for path, _ in COMMANDS} == runs.keys() - {"show --document"} | {"rejects"}
    found = {}
    for name, arguments in runs.items():
        done = preprocess(*arguments, "--json")
        assert done.returncode == 0 and done.stderr == "", done.stderr
        found[name] = json.loads(done.stdout)
    build_id = found["build"]["build_id"]
    rejects = {"number": 0, "file": None, "records": []}
    assert found["build"] == {**found["show"], "is_new": True, "rejects": rejects}
    assert found["build"]["splits"]["train"].keys() == {"documents", "tokens", "text_bytes", "shards"}
    assert found["list"] == [found["show"]] and found["show"]["folder"] == "shards/synthetic"
    assert found["pull"] == found["unpack"] == {**found["show"], "is_new": False}
    assert found["push"]["is_new"] and found["pack"]["path"] == "synthetic.tar.zst"
    assert found["verify"] == {"folder": "shards/synthetic", "build_id": build_id, "faults": []}
    assert {corpus["name"]: corpus["size_bytes"] for corpus in found["corpora"]}["tinyshakespeare"] == 1_115_394
    assert found["estimate"]["build"]["documents"] == 80
    assert found["show --document"]["control_after"] == ["<|endoftext|>"] and found["show --document"]["text"]
    assert [(tmp_path / file["path"]).stat().st_size for file in found["export"]["files"]] == [
        file["size_bytes"] for file in found["export"]["files"]
    ]
    trained = found["tokenizer train"]
    assert trained["tokenizer"] == "char" and trained["files"] == ["characters/alphabet.txt"]
    assert found["tokenizer inspect"].keys() == {"en", "ru"}
    for name, arguments in runs.items():
        done = preprocess(
            *arguments,
            "--quiet",
            *(["--replace"] if name in ("export", "filter train", "pack", "report", "tokenizer train") else []),
        )
        assert done.returncode == 0 and done.stderr == "" and done.stdout, name


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("build", "--corpus", "tinyshakespear"), "did you mean 'tinyshakespeare'"),
        (("build", "--corpus", "synthetic", "--name", "../x"), "choose another name"),
        (("build", "--corpus", "synthetic", "--val-fraction", "2"), "val_fraction must be at least 0"),
        (("build", "--corpus", "synthetic", "--name", ""), "choose another name"),
        (("build", "--corpus", "synthetic", "--tokenizer", "byte", "--num-pieces", "900"), "num_pieces has no effect"),
        (("build", "--corpus", "synthetic", "--num-pieces", "9"), "num_pieces must be from 300 to 64,000, got 9"),
        (("build", "--corpus", "synthetic", "--source", "x"), "--source requires a corpus with exactly one file"),
        (("build", "--corpus", "tinyshakespeare", "--source", "nowhere.txt"), "nowhere.txt is not a file"),
        (
            ("build",),
            "no text to read: pass --corpus NAME, or --input PATH with your own files; "
            "`preprocess build --help` lists the options",
        ),
        (("build", "--corpse", "x"), "--corpus"),
        (("build", "a.txt", "b.txt"), "pass files with --input, and quote globs"),
        (("show", "nothing"), "no build 'nothing': no manifest.json in shards/nothing"),
        (("show", "no/thing"), "no manifest.json in no/thing"),
        (("export", "nothing", "--format", "nanogpt", "--output", "o"), "no build"),
        (("export", "nothing", "--format", "nanogpt", "--by", "language", "--output", "o"), "needs --format text"),
        (("tokenizer", "inspect", "gpt2"), "gpt2 is a tokenizer: pass --corpus or --input"),
        (("build", "--output"), "'--output' requires an argument; `preprocess build --help`"),
        (("tokenizer", "train", "--output"), "an argument; `preprocess tokenizer train --help`"),
        (("sample",), "no command 'sample'; the closest is `preprocess estimate`"),
        (("tokenizer", "trian"), "no command 'trian'; the closest is `preprocess tokenizer train`"),
        (("x" * 9_000,), "no command 'xxx"),
        (("estimate", "--num_samples", "5"), "no option --num-samples; it is called -n; `preprocess estimate --help`"),
        (("--quiet", "list"), "--quiet comes after the command, as in `preprocess list --quiet`"),
        (("build", "--input", "gone.txt"), "--input gone.txt does not exist"),
    ],
)
def test_misuse_has_status_2(preprocess: Run, arguments: tuple[str, ...], expected: str) -> None:
    check_error(preprocess(*arguments), 2, expected)


def test_escape_sequences_are_printed_escaped(preprocess: Run, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    done = preprocess("show", "evil\x1b[2J")
    assert done.returncode == 2 and "\x1b" not in done.stderr


def test_terminal_without_cyrillic_ends_no_command(preprocess: Run, tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"text {i}", "who": "Анна"}) for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    windows = {"PYTHONIOENCODING": "cp1252"}
    own = ("--input", "rows.jsonl", "--author-column", "who", "--tokenizer", "byte", "--val-fraction", "0.5")
    assert preprocess("build", *own, env=windows).returncode == 0
    done = preprocess("stats", "own", env=windows)
    assert done.returncode == 0 and "\\u0410\\u043d\\u043d\\u0430 4" in done.stdout, done.stderr


TEXT_OPTIONS = [
    option.opts[0]
    for option in build.params
    if isinstance(option, click.Option) and option.type is click.STRING and option.name != "inputs"
]


@pytest.mark.parametrize("option", TEXT_OPTIONS)
def test_option_that_is_not_utf8_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    """The shell passes $'caf\\xe9' on as bytes, which Python represents by surrogates."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}')
    needed = ["--split", "given"] if option == "--split-column" else []
    done = CliRunner().invoke(main, ["build", "--input", "rows.jsonl", *needed, option, "caf\udce9"])
    assert isinstance(done.exception, SystemExit) and done.exit_code == 2
    assert done.output.startswith("error: ") and done.output.count("\n") == 1 and "\\udce9" in done.output


def test_json_of_a_folder_that_is_not_utf8_is_utf8(preprocess: Run, tmp_path: Path) -> None:
    folder = os.fsdecode(b"caf\xe9/build")
    assert preprocess(*TINY, "--output", folder).returncode == 0
    assert json.loads(preprocess("show", folder, "--json").stdout)["folder"] == folder


def test_help_imports_none_of_the_libraries_that_take_time() -> None:
    code = (
        "from preprocess.__main__ import main\ntry: main()\nfinally: import sys; print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("Usage: preprocess ")
    assert not {"numpy", "pyarrow", "requests", "tiktoken", "torch"} & set(done.stderr.split())
