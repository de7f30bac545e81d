"""The command line of training (a config file, settings and flags) and its help text."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from preprocess.errors import MisuseError
from preprocess.shards.format import MissingBuildError
from train.config import Config, current_name
from train.core.arguments import VERSION_LINE, find_config, list_options, program_name, split_arguments
from train.core.config_file import BASE
from train.core.settings import check_known, describe_option, describe_settings

FLAGS = {
    "--restart": "delete the run in out_dir and start again",
    "--quiet": "print warnings and errors only",
    "--version": "print the version and exit",
    "--help": "print this text and exit",
}
BASE_DOC = (
    "in the first assignment of CONFIG.py only: another config, relative to this one, whose settings this one changes"
)


@dataclass(frozen=True, kw_only=True)
class Command:
    """A parsed command line."""

    config_path: Path
    overrides: dict[str, str]  # name of a setting → its value, not yet converted
    restart: bool
    quiet: bool


def parse_command_line(arguments: Sequence[str]) -> Command:
    """Parse the arguments: one config file, settings and flags. Raises MisuseError for anything else."""
    for name in list_options(arguments):
        if f"--{name}" not in FLAGS:
            _check_setting(name)
    try:
        parsed = split_arguments(arguments, flags=FLAGS)
    except MisuseError as e:
        raise MisuseError(f"{e}; {usage()}") from e
    paths = parsed.positionals
    if len(paths) != 1:
        found = f"{len(paths)} ({' '.join(paths):.80})" if paths else "none"
        raise MisuseError(f"expected one config file, got {found}; {usage()}")
    return Command(
        config_path=find_config(paths[0]),
        overrides={current_name(key): value for key, value in parsed.settings.items()},
        restart="--restart" in parsed.flags,
        quiet="--quiet" in parsed.flags,
    )


@contextmanager
def advise_on_missing_build(config_path: Path) -> Iterator[None]:
    """Add to a MissingBuildError in the block that the config names the command that makes its build."""
    try:
        yield
    except MissingBuildError as e:
        raise MisuseError(f"{e}, and the first lines of {config_path} may name the command") from e


def _check_setting(name: str) -> None:
    """Raise MisuseError unless `name` is a setting that the command line can set."""
    if name == BASE:
        raise MisuseError(f"the command line: {BASE} can be set in a config file only; make it its first assignment")
    check_known(Config, current_name(name), "the command line", others=FLAGS)


def is_help_request(arguments: Sequence[str]) -> bool:
    """Return whether `arguments` are empty or contain `--help`, `-h` or `--version`."""
    return not arguments or not {"--help", "-h", "--version"}.isdisjoint(arguments)


def print_help(arguments: Sequence[str]) -> int:
    """Print the version if `arguments` contain `--version`, else the help text. Return 0."""
    print(VERSION_LINE if "--version" in arguments else describe_usage())
    return 0


def usage() -> str:
    """Return the usage line of the command."""
    return f"usage: {program_name('python train/train.py')} CONFIG.py [--key=value ...] [--restart] [--quiet]"


def describe_usage() -> str:
    """Return the text of `--help`, wrapped to the terminal's width."""
    width = max(shutil.get_terminal_size().columns - 1, 1)
    lines = [*textwrap.wrap(usage(), width, subsequent_indent="  ", break_on_hyphens=False), ""]
    for flag, text in FLAGS.items():
        lines += describe_option(flag, text, width=width)
    lines += ["", *textwrap.wrap("settings, in CONFIG.py or as --key=value:", width)]
    lines += describe_option(BASE, BASE_DOC, width=width)
    return "\n".join([*lines, *describe_settings(Config)])
