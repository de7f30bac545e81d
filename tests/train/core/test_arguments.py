"""Command lines: spellings of options, the options that all commands have, and names of configs."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess import __version__
from preprocess.errors import MisuseError
from tests.conftest import assert_one_line
from train.core.arguments import (
    CONFIG_FOLDERS,
    Arguments,
    Parser,
    find_config,
    list_options,
    make_path_parser,
    normalize_option,
    normalize_options,
    parse_number,
    parse_whole_number,
    program_name,
    split_arguments,
)

FLAGS = ("--restart", "--help", "-h")
SCRIPTS = ("sample", "chat", "evaluate", "export", "plot", "report", "serve")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--top-k", "--top_k"),
        ("--top-k=5", "--top_k=5"),
        ("--top_k=5", "--top_k=5"),
        ("--prompt=a-b=c-d", "--prompt=a-b=c-d"),
        ("--out-dir=a\nb-c", "--out_dir=a\nb-c"),
        ("--out-dir=", "--out_dir="),
        ("runs/a-b", "runs/a-b"),
        ("--", "--"),
        ("-x-y", "-x-y"),
        ("-1e-3", "-1e-3"),
        ("---a-b", "---a-b"),
        ("--well-known facts", "--well-known facts"),
    ],
)
def test_normalize_option_changes_only_names(argument: str, expected: str) -> None:
    assert normalize_option(argument) == expected


def test_normalize_options_stops_at_double_dash() -> None:
    assert normalize_options(["--a-b", "x-y", "--", "--c-d"]) == ["--a_b", "x-y", "--", "--c-d"]
    assert normalize_options([]) == []


def make_parser(**settings: Any) -> Parser:
    parser = Parser(prog="python train/sample.py", description="Test.", **settings)
    parser.add_argument("run")
    parser.add_argument("--top_k", type=int)
    parser.add_argument("--prompt", default="")
    return parser


def test_parser_accepts_every_form_of_an_option() -> None:
    for form in (["--top_k", "5"], ["--top_k=5"], ["--top-k", "5"], ["--top-k=5"], ["--top=5"]):
        options = make_parser().parse_args(["a-b", *form, "--prompt=--x-y", "--quiet"])
        assert (options.run, options.top_k, options.prompt, options.quiet) == ("a-b", 5, "--x-y", True)
    options = make_parser().parse_args(["--prompt", "--well-known facts", "--", "--top-k"])
    assert options.run == "--top-k" and options.prompt == "--well-known facts" and options.top_k is None


def test_parser_errors_are_one_line() -> None:
    with pytest.raises(MisuseError, match=r"no option --topk; did you mean --top_k\? `python train/sample.py --help`"):
        make_parser().parse_args(["--topk", "5"])  # the run is missing too, but the option is the first mistake
    with pytest.raises(MisuseError, match="required: run"):
        make_parser().parse_args([])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--top_k"], "--top_k has no value; write --top_k=VALUE; `python"),
        (["run", "--top_k", "-inf"], "--top_k has no value; write --top_k=VALUE; `python"),
        (["run", "--top_k=5.0"], "--top_k must be a whole number, got '5.0'; `python"),
        (["run", "--top_k=" + "9" * 5000], "--top_k must be a whole number, got '999"),
        (["run", "--rate=x"], "--rate must be a number, got 'x'; `python"),
        (["run", "--quiet=1"], "--quiet takes no value; write --quiet alone; `python"),
        (["run", "--runs"], "--runs has no value; write --runs VALUE; `python"),
        (["run", "--output="], "--output is empty; name a file or a folder"),
        ([""], "RUN is empty; name a file or a folder"),
        (["run", *["x" * 1000] * 50], "unrecognized arguments: xxxx"),
        (["run", "--" + "x" * 9000], "there is no option --xxxx"),
        (["run", "--t=" + "x" * 9000], "ambiguous option"),
    ],
)
def test_parser_errors_are_short_and_in_plain_words(arguments: list[str], message: str) -> None:
    parser = Parser(prog="python train/sample.py", description="Test.")
    parser.add_argument("run", type=make_path_parser("RUN"))
    parser.add_argument("--output", type=make_path_parser("--output"))
    parser.add_argument("--top_k", type=parse_whole_number)
    parser.add_argument("--top_p", type=parse_number)
    parser.add_argument("--rate", type=parse_number)
    parser.add_argument("--runs", nargs="+")
    parser.add_argument("more", nargs="?")
    with pytest.raises(MisuseError) as e:
        parser.parse_args(arguments)
    assert str(e.value).startswith(message), str(e.value)
    assert_one_line(str(e.value))


def test_numbers_are_parsed_as_python_writes_them() -> None:
    assert (parse_whole_number("-1_0"), parse_number("1e3"), parse_number("1e400")) == (-10, 1000.0, math.inf)


def test_parser_prints_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        make_parser().parse_args(["--version"])
    assert e.value.code == 0 and capsys.readouterr().out == f"folio, version {__version__}\n"


def test_parser_has_json_if_asked() -> None:
    options = make_parser(json=True).parse_args(["run", "--json"])
    assert options.json and not options.quiet
    with pytest.raises(MisuseError, match="there is no option --json"):
        make_parser().parse_args(["run", "--json"])


class Captured(Exception):
    """Carries the parser of a script out of it."""


def capture_parser(script: str, monkeypatch: pytest.MonkeyPatch) -> Parser:
    def capture(parser: Parser, *_: object) -> None:
        raise Captured(parser)

    module = importlib.import_module(f"train.{script}")
    with monkeypatch.context() as patch, pytest.raises(Captured) as e:
        patch.setattr(Parser, "parse_known_args", capture)
        module.main([])
    parser = e.value.args[0]
    assert isinstance(parser, Parser)
    return parser


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_the_common_options(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = capture_parser(script, monkeypatch).format_help()
    assert text.startswith(f"usage: python train/{script}.py ") and "--version" in text and "--quiet" in text
    if script == "export":
        assert "--json" in text


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_of_every_script_accepts_dashes(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = capture_parser(script, monkeypatch)
    for action in parser._actions:
        for option in action.option_strings:
            if "_" in option:
                values = [] if action.nargs == 0 else ["5"]
                arguments = [option.replace("_", "-"), *values]
                required = ["--output=x"] if "--output" in parser._option_string_actions else []
                namespace, _ = parser.parse_known_args(["run", *required, *arguments])
                assert str(getattr(namespace, action.dest)) in ("5", "5.0", "True"), option
    assert not [option for action in parser._actions for option in action.option_strings if "-" in option.lstrip("-")]


def test_split_arguments_divides_a_command_line() -> None:
    found = split_arguments(["c.py", "--max-steps", "5", "--seed=-1", "--restart", "--", "--x-y"], flags=FLAGS)
    assert found == Arguments(
        positionals=["c.py", "--x-y"], settings={"max_steps": "5", "seed": "-1"}, flags={"--restart"}
    )
    assert split_arguments(["--seed", "-1", "-h"], flags=FLAGS).settings == {"seed": "-1"}
    assert split_arguments(["--seed=1", "--seed", "2"], flags=FLAGS).settings == {"seed": "2"}
    repeated = split_arguments(["--a=1", "--b=2", "--a=3"], flags=FLAGS).settings
    assert [*repeated.items()] == [("b", "2"), ("a", "3")], "in the order of their last values"
    assert split_arguments([], flags=FLAGS) == Arguments(positionals=[], settings={}, flags=set())


def test_list_options_names_every_long_option_before_double_dash() -> None:
    assert list_options(["c.py", "--max-steps", "5", "--a-b=--c", "-h", "--", "--d"]) == ["max_steps", "a_b"]


NAMES = st.from_regex(r"[a-z0-9][a-z0-9_]{0,12}", fullmatch=True)


@given(st.dictionaries(NAMES, st.text(max_size=8), max_size=4), st.data())
def test_all_forms_of_settings_mean_the_same(settings: dict[str, str], data: st.DataObject) -> None:
    arguments: list[str] = []
    for name, value in settings.items():
        shown = data.draw(st.sampled_from([name, name.replace("_", "-")]))
        as_two = not value.startswith("--") and value not in FLAGS and data.draw(st.booleans())
        arguments += [f"--{shown}", value] if as_two else [f"--{shown}={value}"]
    assert split_arguments(arguments, flags=FLAGS) == Arguments(positionals=[], settings=settings, flags=set())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--max-steps"], "--max-steps has no value; write --max_steps=VALUE"),
        (["--compile", "--max_steps=5"], "--compile has no value; write --compile=VALUE"),
        (["--seed", "-h"], "--seed has no value"),
        (["--restart=1"], "cannot read '--restart=1': --restart takes no value; write --restart alone"),
        (["-x"], "cannot read '-x'; expected --key=value such as --max_steps=100"),
        (["---seed=1"], "cannot read '---seed=1'"),
        (["--=1"], "cannot read '--=1'"),
    ],
)
def test_split_arguments_rejects_what_it_cannot_read(arguments: list[str], expected: str) -> None:
    with pytest.raises(MisuseError) as e:
        split_arguments(arguments, flags=FLAGS)
    assert str(e.value).startswith(expected)


def test_find_config_prefers_existing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = next(folder for folder in CONFIG_FOLDERS if folder.is_dir()) / "demo.py"
    assert find_config("demo") == find_config("demo.py") == shipped and shipped.is_file()
    assert find_config("configs/demo.py") == Path("configs/demo.py")  # only bare names are looked up
    assert find_config("missing") == Path("missing")
    (tmp_path / "demo").mkdir()
    assert find_config("demo") == shipped
    (tmp_path / "demo.py").write_text("")
    assert find_config("demo.py") == Path("demo.py")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_config("~/demo.py") == tmp_path / "demo.py"
    assert find_config("x" * 253) == Path("x" * 253)  # with .py the name would be too long for the file system
    for name, message in (
        ("", "is empty"),
        ("x" * 5000, "is longer than this system allows"),
        ("a\0", "must be a path"),
    ):
        with pytest.raises(MisuseError, match=f"the name of the config file {message}"):
            find_config(name)


def test_program_name_is_the_command_that_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert program_name("python train/sample.py") == "python train/sample.py"
    monkeypatch.setattr(sys, "argv", ["folio sample", "run"])
    assert program_name("python train/sample.py") == make_parser().prog == "folio sample"
