"""`folio serve`: errors before the server starts. tests/train/serving has the others."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

import pytest

from tests.helpers.runs import invoke
from train.serve import LIBRARIES


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every library count as installed; these tests do not import them."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


@pytest.mark.parametrize("name", LIBRARIES)
def test_missing_library_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda found: None if found == name else found)
    result = invoke("serve.py", tmp_path)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr == (
        f"error: serving needs transformers and a web server, and {name} is not installed; "
        "pip install 'folio-lm[serve]'\n"
    )


@pytest.mark.usefixtures("installed")
def test_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = invoke("serve.py", tmp_path, "--port", port)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"error: port {port} of 127.0.0.1 is in use; choose another one by --port\n"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--port=65536",), "--port must be from 0 to 65535, got 65536"),
        (("--port=x",), "--port must be a whole number, got 'x'"),
        (("--host=256.0.0.1", "--port=0"), "--host '256.0.0.1' is not an address of this machine"),
        (("--host=192.0.2.1", "--port=0"), "cannot listen on port 0 of '192.0.2.1'"),
        (("--port=0",), "is neither a checkpoint nor a run that has one"),
    ],
)
def test_wrong_option_is_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = invoke("serve.py", tmp_path, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and message in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.usefixtures("installed")
def test_best_of_an_exported_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    result = invoke("serve.py", tmp_path, "--best", "--port", 0)
    assert result.returncode == 2 and "is an exported folder, but --best chooses a checkpoint" in result.stderr
