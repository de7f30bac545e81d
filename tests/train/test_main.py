"""The command `folio`."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from preprocess import __version__
from tests.conftest import ROOT
from tests.train.core.test_arguments import SCRIPTS
from train.__main__ import COMMANDS, dispatch
from train.command_line import parse_command_line
from train.config import Config

IMPORTING = "importing PyTorch\n"  # what a command prints first if it does not print on a terminal


def run_folio(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    code = "import sys; from train.__main__ import main; sys.argv[0] = '/bin/folio'; sys.exit(main())"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_commands_are_the_scripts() -> None:
    assert set(COMMANDS) == {"train", *SCRIPTS}
    for name in COMMANDS:
        assert callable(importlib.import_module(f"train.{name}").main)


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_folio_lists_its_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(arguments) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: folio ") and all(f"\n  {name} " in text for name in COMMANDS)


def test_folio_help_fits_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in (44, 60, 80):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert dispatch([]) == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) < columns


def test_folio_prints_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["--version"]) == 0
    assert capsys.readouterr().out == f"folio, version {__version__}\n"


def test_folio_suggests_the_nearest_command() -> None:
    done = run_folio("trian")
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr == "error: folio has no command 'trian'; did you mean 'train'? `folio --help` lists the commands\n"
    )


def test_help_of_a_subcommand_names_it_as_it_was_called(tmp_path: Path) -> None:
    done = run_folio("plot", "--help", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("usage: folio plot "), done.stderr
    done = run_folio("plot", "nowhere", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "nowhere" in done.stderr


def test_help_of_train_lists_the_settings(tmp_path: Path) -> None:
    done = run_folio("train", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "learning_rate" in done.stdout and done.stderr == ""


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Config)])
def test_every_setting_of_train_accepts_every_form(name: str) -> None:
    dashed = name.replace("_", "-")
    for form in ([f"--{name}=5"], [f"--{dashed}=5"], [f"--{name}", "5"], [f"--{dashed}", "5"]):
        command = parse_command_line(["some-config.py", *form, "--quiet"])
        assert command.overrides == {name: "5"} and command.config_path == Path("some-config.py") and command.quiet


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], []])
def test_train_answers_questions_without_torch(arguments: list[str]) -> None:
    code = "import sys, train.__main__; print(train.__main__.dispatch(sys.argv[1:]), 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, "train", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr


def test_module_can_be_run() -> None:
    done = subprocess.run([sys.executable, "-m", "train"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == run_folio().stdout


@pytest.mark.parametrize("name", ["train", "sample", "evaluate"])
def test_ctrl_c_while_torch_is_imported_ends_a_script_without_a_traceback(tmp_path: Path, name: str) -> None:
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt\n")
    command = [sys.executable, str(ROOT / "train" / f"{name}.py"), "nowhere"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    stdout, stderr = (IMPORTING, "") if name == "train" else ("", "" if name == "plot" else IMPORTING)
    assert (done.returncode, done.stdout, done.stderr) == (130, stdout, stderr)
