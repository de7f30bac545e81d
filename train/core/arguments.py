"""How the command lines of this package are read.

Every command accepts the same forms of an option: `--top_k=5`, `--top-k=5`, `--top_k 5` and
`--top-k 5` mean the same. Names are converted to underscores, as settings are written; values are
never changed.
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
# A wheel has the configs of the repository inside this package; in a checkout they are beside it.
CONFIG_FOLDERS = (Path(__file__).resolve().parents[1] / "configs", Path(__file__).resolve().parents[2] / "configs")


# What argparse says, and what this package says instead.
EXPLANATIONS = {
    r"argument (\S+): expected one argument": r"\1 has no value; write \1=VALUE",
    r"argument (\S+): expected at least one argument": r"\1 has no value; write \1 VALUE",
    r"argument (\S+): ignored explicit argument .*": r"\1 takes no value; write \1 alone",
    r"argument (\S+): (must be .*)": r"\1 \2",
}


class Parser(argparse.ArgumentParser):
    """An argparse parser with --version and --quiet, whose errors are MisuseErrors of one line.

    `prog`: how the script is started by its path, such as "python train/sample.py". `json`: add
    --json as well. The parsed options have the attributes `quiet` and, if asked for, `json`.
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
        """Reject an option that does not exist, before argparse misses something else."""
        num_options = arguments.index("--") if "--" in arguments else len(arguments)
        known = [option for option in self._option_string_actions if option.startswith("--")]
        for argument in arguments[:num_options]:
            name = argument.partition("=")[0]
            # argparse, too, takes an argument with a space as a value.
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
    """Return a function that parses the path of the argument `name`, for argparse's `type`."""
    return functools.partial(parse_path, name=name)


def parse_whole_number(text: str) -> int:
    """Return the number that `text` is, for argparse's `type`."""
    return int(_convert_number(text, int, "a whole number"))


def parse_number(text: str) -> float:
    """Return the number that `text` is, for argparse's `type`."""
    return float(_convert_number(text, float, "a number"))


def _convert_number(text: str, kind: type[int] | type[float], expected: str) -> int | float:
    try:
        if len(text) <= MAX_SHOWN:
            return kind(text)
    except ValueError:
        pass  # raised below
    raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r:.80}")


def program_name(script: str) -> str:
    """Return `folio sample` or the like if the command `folio` started this process, else `script`."""
    return sys.argv[0] if sys.argv[0].startswith("folio ") else script


def normalize_option(argument: str) -> str:
    """Return `argument` with underscores in its option name: `--top-k=a-b` -> `--top_k=a-b`.

    An argument that is not a long option is returned unchanged.
    """
    match = LONG_OPTION.fullmatch(argument)
    return argument if match is None else f"--{match[1].replace('-', '_')}{match[2] or ''}"


def normalize_options(arguments: Sequence[str]) -> list[str]:
    """Apply `normalize_option` to the arguments before `--`. Those after it are positional."""
    num_options = arguments.index("--") if "--" in arguments else len(arguments)
    return [*map(normalize_option, arguments[:num_options]), *arguments[num_options:]]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """A command line of settings, as `split_arguments` returns it."""

    positionals: list[str]
    settings: dict[str, str]  # name, with underscores: value; the last value if a setting is repeated
    flags: set[str]


def list_options(arguments: Sequence[str]) -> list[str]:
    """Return the names, with underscores, of the long options before `--`."""
    num_options = arguments.index("--") if "--" in arguments else len(arguments)
    matches = map(LONG_OPTION.fullmatch, arguments[:num_options])
    return [match[1].replace("-", "_") for match in matches if match is not None]


def split_arguments(arguments: Sequence[str], *, flags: Collection[str]) -> Arguments:
    """Divide a command line into positional arguments, settings and flags.

    `--key=value` and `--key value` set `key`. `flags` are the options that take no value, such as
    "--help" and "-h". A value that begins with `--` must be written as `--key=value`. The arguments
    after `--` are positional. Raises MisuseError if a setting has no value, a flag has one, or an
    option cannot be read.
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
            settings.pop(key, None)  # keep them in the order of their last value
            settings[key] = value
    return Arguments(positionals=positionals, settings=settings, flags=found_flags)


def find_config(name: str) -> Path:
    """Return the path of the config file `name`.

    A path to an existing file is returned as it is. Otherwise a bare name such as `demo` or
    `demo.py` means the config of this name that Folio comes with. If Folio has no such config, the result is
    the path that does not exist. Raises MisuseError if `name` cannot be a path.
    """
    path = parse_path(name, "the name of the config file")
    if not path.is_file() and name == path.name:
        shipped = (folder / f"{name.removesuffix('.py')}.py" for folder in CONFIG_FOLDERS)
        return next((candidate for candidate in shipped if os.path.isfile(candidate)), path)
    return path
