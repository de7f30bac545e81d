"""Answer requests over HTTP with a trained model: `python train/serve.py RUN --port 8000`.

The server has OpenAI's API, with streams, so that its clients can use the model. docs/serving.md says what
it supports. RUN is a run, a checkpoint, or a folder that `folio export` wrote.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: the folder train/ would hide the package `train`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from train.__main__ import run_script

    run_script("serve")

import errno
import importlib.util
import ipaddress
import os
import socket
from types import ModuleType
from typing import Any

from preprocess.errors import FolioError, MisuseError, one_line
from train.__main__ import exit_on_signals
from train.core.arguments import Parser, make_path_parser, parse_whole_number
from train.core.cli import log_when_stopped, warn
from train.core.device import choose_device
from train.run.checkpoint import find_checkpoint
from train.run.checkpoint_info import INFO_FILE
from train.run.huggingface_folder import CONFIG_FILE
from train.serving.served_model import ServedModel, export_run, open_exported_folder

LOOPBACK = "127.0.0.1"
LIBRARIES = ("transformers", "openai", "fastapi", "starlette", "uvicorn")
INSTALL = "pip install 'folio-lm[serve]'"


def main(arguments: list[str]) -> int:
    """Serve the model that the command line names until Ctrl-C. Return the exit status."""
    options = _parse(arguments)
    _check_libraries()
    device = choose_device(options.device)
    with _listen(options.host, options.port) as listening:
        served = _find_model(options.run, best=options.best)
        server = _import_server()
        loaded = server.LoadedModel(served, device)
        address, port = listening.getsockname()[:2]
        url = f"http://{f'[{address}]' if ':' in address else address}:{port}/v1"
        if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
            warn(f"everyone who can reach {address} can use the model; there is no password")
        print(one_line(f"{served.folder}: context of {loaded.context:,} tokens, on {device}"), flush=True)
        print(one_line(f"model {served.name!r} at {url}; Ctrl-C ends the server"), flush=True)
        if not options.quiet:
            print(f"example:\n{one_line(server.make_example(loaded, url))}", flush=True)
        with log_when_stopped("the server has ended"):
            server.run_server(loaded, listening, log_requests=not options.quiet)
    return 0


def _parse(arguments: list[str]) -> Any:
    parser = Parser(
        prog="python train/serve.py",
        description="Answer requests over HTTP with a trained model. The server has OpenAI's API: completions and "
        "chats, also streamed. docs/serving.md describes it.",
    )
    parser.add_argument(
        "run", type=make_path_parser("RUN"), metavar="RUN", help="a run, a checkpoint, or an exported folder"
    )
    parser.add_argument(
        "--host", default=LOOPBACK, help=f"address to listen on; 0.0.0.0 is all of this machine's (default: {LOOPBACK})"
    )
    parser.add_argument(
        "--port", type=parse_whole_number, default=8000, metavar="N", help="0 is any free port (default: 8000)"
    )
    parser.add_argument("--best", action="store_true", help="use the checkpoint with the lowest validation loss")
    parser.add_argument("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N (default: auto)")
    options = parser.parse_args(arguments)
    if not 0 <= options.port < 1 << 16:
        raise MisuseError(f"--port must be from 0 to 65535, got {options.port}")
    return options


def _find_model(path: Path, *, best: bool) -> ServedModel:
    if (path / CONFIG_FILE).is_file() and not (path / INFO_FILE).exists():
        if best:
            raise MisuseError(f"{path} is an exported folder, but --best chooses a checkpoint; leave it out")
        return open_exported_folder(path)
    return export_run(find_checkpoint(path, warn, best=best))


def _check_libraries() -> None:
    """Raise FolioError if a library of the extra `serve` is missing, without the seconds that an import takes."""
    for name in LIBRARIES:
        if importlib.util.find_spec(name) is None:
            raise FolioError(f"serving needs transformers and a web server, and {name} is not installed; {INSTALL}")


def _import_server() -> ModuleType:
    """Return the module that needs transformers. Raises FolioError for another version of transformers."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # the hub is not asked, for example for newer versions of a folder
    try:
        with exit_on_signals():
            from train.serving import openai_server
    except ImportError as e:
        raise FolioError(f"serving needs the server of transformers 5.23 ({e!s:.120}); {INSTALL}") from e
    return openai_server


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises MisuseError if the address is wrong or the port is in use."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host or LOOPBACK, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as e:
        raise MisuseError(f"--host {host!r:.80} is not an address of this machine; use 127.0.0.1 or 0.0.0.0") from e
    try:
        return socket.create_server(address[:2], family=family)
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            raise MisuseError(f"port {port} of {host:.80} is in use; choose another one by --port") from e
        raise MisuseError(
            f"cannot listen on port {port} of {host!r:.80} ({os.strerror(e.errno or 0)}); choose others"
        ) from e
