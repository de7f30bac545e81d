"""Parsing of command lines, for all commands of this package.

Every command accepts the same forms of an option: `--top_k=5`, `--top-k=5`, `--top_k 5` and
`--top-k 5` mean the same. Hyphens in the name of an option are converted to underscores; its value
is not changed.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from preprocess import __version__
from preprocess.errors import MAX_SHOWN, MisuseError
from train.core.paths import parse_path

VERSION_LINE = f"folio, version {__version__}"
LONG_OPTION = re.compile(r"--([A-Za-z0-9][A-Za-z0-9_-]*)(=.*)?", re.DOTALL)
# In an installed wheel the configs are inside this package; in a checkout they are beside it.
CONFIG_FOLDERS = (Path(__file__).resolve().parents[1] / "configs", Path(__file__).resolve().parents[2] / "configs")


# Messages of argparse, as regular expressions, and their replacements.
EXPLANATIONS = {
    r"argument (\S+): expected one argument": r"\1 has no value; write \1=VALUE",
    r"argument (\S+): expected at least one argument": r"\1 has no value; write \1 VALUE",
    r"argument (\S+): ignored explicit argument .*": r"\1 takes no value; write \1 alone",
    r"argument (\S+): (must be .*)": r"\1 \2",
}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with --version and --quiet that raises MisuseError for a wrong command line.

    `prog` is the command that starts the script by its path, such as "python train/sample.py". With
    `json`, there is also an option --json. The parsed options have the attributes `quiet` and, with
    `json`, `json`.
    """

    def __init__(self, *, prog: str, description: str, json: bool = False) -> None:
        super().__init__(prog=program_name(prog), description=description)
        self.add_argument("--version", action="version", version=VERSION_LINE, help="print the version and exit")
        self.add_argument("--quiet", action="store_true", help="print only the result and warnings")
        if json:
            self.add_argument("--json", action="store_true", help="print the result as JSON")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        arguments = normalize_options(sys.argv[1:] if args is None else args)
        self._check_options(arguments)
        return super().parse_known_args(arguments, namespace)

    def _check_options(self, arguments: Sequence[str]) -> None:
        """Raise MisuseError for an unknown option; argparse would report a missing argument first."""
        num_options = arguments.index("--") if "--" in arguments else len(arguments)
        known = [option for option in self._option_string_actions if option.startswith("--")]
        for argument in arguments[:num_options]:
            name = argument.partition("=")[0]
            # As in argparse, an argument that contains a space is a value.
            if not LONG_OPTION.fullmatch(argument) or " " in argument or any(o.startswith(name) for o in known):
                continue
            close = difflib.get_close_matches(name[:MAX_SHOWN], known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise MisuseError(f"there is no option {name:.80}; {hint}`{self.prog} --help` lists the options")

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"(\S{80})\S+", r"\1…", message)  # a value may be longer than a screen
        for pattern, explanation in EXPLANATIONS.items():
            message = re.sub(pattern, explanation, message)
        raise MisuseError(f"{message:.300}; `{self.prog} --help` lists the options")


def make_path_parser(name: str) -> Callable[[str], Path]:
    """Return a function that converts the argument `name` to a Path, for argparse's `type`."""
    return functools.partial(parse_path, name=name)


def parse_whole_number(text: str) -> int:
    """Convert `text` to an int, for argparse's `type`. Raises ArgumentTypeError if it is not one."""
    return int(_convert_number(text, int, "a whole number"))


def parse_number(text: str) -> float:
    """Convert `text` to a float, for argparse's `type`. Raises ArgumentTypeError if it is not one."""
    return float(_convert_number(text, float, "a number"))


def _convert_number(text: str, kind: type[int] | type[float], expected: str) -> int | float:
    try:
        if len(text) <= MAX_SHOWN:
            return kind(text)
    except ValueError:
        pass  # raised below
    raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r:.80}")


def program_name(script: str) -> str:
    """Return the program's name for messages: `folio COMMAND` if started so, else `script`."""
    return sys.argv[0] if sys.argv[0].startswith("folio ") else script


def normalize_option(argument: str) -> str:
    """Return `argument` with underscores in its option name: `--top-k=a-b` -> `--top_k=a-b`.

    An argument that is not a long option is returned unchanged.
    """
    match = LONG_OPTION.fullmatch(argument)
    return argument if match is None else f"--{match[1].replace('-', '_')}{match[2] or ''}"


def normalize_options(arguments: Sequence[str]) -> list[str]:
    """Apply `normalize_option` to the arguments before `--`; those after it are positional."""
    num_options = arguments.index("--") if "--" in arguments else len(arguments)
    return [*map(normalize_option, arguments[:num_options]), *arguments[num_options:]]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """A command line of settings, as `split_arguments` returns it."""

    positionals: list[str]
    settings: dict[str, str]  # name (with underscores) → value; the last value if a setting is repeated
    flags: set[str]  # with their dashes, such as "--help"


def list_options(arguments: Sequence[str]) -> list[str]:
    """Return the names, with underscores, of the long options before `--`."""
    num_options = arguments.index("--") if "--" in arguments else len(arguments)
    matches = map(LONG_OPTION.fullmatch, arguments[:num_options])
    return [match[1].replace("-", "_") for match in matches if match is not None]


def split_arguments(arguments: Sequence[str], *, flags: Collection[str]) -> Arguments:
    """Divide a command line into positional arguments, settings and flags.

    `--key=value` and `--key value` set `key`. `flags` are the options that take no value, such as
    "--help" and "-h". A value that begins with `--` must be written as `--key=value`. The arguments
    after `--` are positional. Raises MisuseError if a setting has no value, if a flag has one, or
    for anything else that begins with a dash.
    """
    positionals: list[str] = []
    settings: dict[str, str] = {}
    found_flags: set[str] = set()
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        option = normalize_option(argument)
        name, equals, value = option.partition("=")
        if argument == "--":
            positionals += rest
            break
        if not argument.startswith("-"):
            positionals.append(argument)
        elif option in flags:
            found_flags.add(option)
        elif name in flags:
            raise MisuseError(f"cannot read {argument!r:.80}: {name} takes no value; write {name} alone")
        elif not LONG_OPTION.fullmatch(option):
            raise MisuseError(f"cannot read {argument!r:.80}; expected --key=value such as --max_steps=100")
        else:
            key = name.removeprefix("--")
            if not equals:
                if not rest or rest[0].startswith("--") or rest[0] in flags:
                    raise MisuseError(f"{argument:.80} has no value; write {name:.80}=VALUE")
                value = rest.pop(0)
            settings.pop(key, None)  # a repeated setting moves to the end
            settings[key] = value
    return Arguments(positionals=positionals, settings=settings, flags=found_flags)


def find_config(name: str) -> Path:
    """Return the path of the config file `name`.

    If no file has this path and `name` is a bare name such as `demo` or `demo.py`, return the path
    of the config of that name that Folio comes with. If there is none either, return the path
    although no file exists there. Raises MisuseError if `name` cannot be a path.
    """
    path = parse_path(name, "the name of the config file")
    if not path.is_file() and name == path.name:
        shipped = (folder / f"{name.removesuffix('.py')}.py" for folder in CONFIG_FOLDERS)
        return next((candidate for candidate in shipped if os.path.isfile(candidate)), path)
    return path
