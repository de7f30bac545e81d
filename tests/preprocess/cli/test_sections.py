"""The sections in the help of commands with many options."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from preprocess.cli.main import main
from preprocess.cli.sections import GENERAL, SECTIONS, find_headings


def read_sections(*command: str) -> dict[str, list[str]]:
    """Return the names of the options in the help of a command, by the heading above them."""
    text = CliRunner().invoke(main, [*command, "--help"], prog_name="preprocess").output
    sections: dict[str, list[str]] = {}
    heading = ""
    for line in text.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            heading = line.removesuffix(":")
        elif heading and line.startswith("  -"):
            sections.setdefault(heading, []).append(line.split()[0].rstrip(","))
    return sections


def test_build_help_groups_the_options_by_subject() -> None:
    sections = read_sections("build")
    assert list(sections) == [*SECTIONS.values(), GENERAL]
    assert sections["Text to read"] == ["--corpus", "--input", "--source"]
    assert {"--filter", "--quality", "--pii", "--languages", "--filter-by-model"} <= set(sections["Filters"])
    assert {"--name", "--output", "--workers", "--json", "-h"} <= set(sections[GENERAL])
    assert sections["Split"] == ["--split", "--val-fraction"]


def test_every_section_begins_with_an_existing_option() -> None:
    assert set(SECTIONS) <= set(find_headings()) and GENERAL not in find_headings().values()


@pytest.mark.parametrize(
    "path", [("build",), ("estimate",), ("filter", "try"), ("filter", "train"), ("tokenizer", "train")], ids=" ".join
)
def test_sectioned_help_lists_every_option_once(path: tuple[str, ...]) -> None:
    command: click.Command = main
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    listed = [name for names in read_sections(*path).values() for name in names]
    expected = [option.opts[0] for option in command.params if isinstance(option, click.Option)]
    assert sorted(listed) == sorted([*expected, "-h"])
