"""Divide the options in the help of a command into sections.

`preprocess build` has more than sixty options. One list of them would be hard to search.
"""

from __future__ import annotations

import functools

import click

from preprocess.cli.options import recipe_options

GENERAL = "Options"
# The first option of each section. A section ends before the first option of the next one.
SECTIONS = {
    "corpus": "Text to read",
    "format": "Files and documents",
    "text_column": "Columns of tables and JSON",
    "author_column": "Metadata and groups",
    "encoding": "Encoding and errors",
    "max_documents": "Selection and cleaning",
    "filters": "Filters",
    "dedup": "Duplicates and evaluation sets",
    "split": "Split",
    "authors": "Tokens",
    "num_pairs": "Random choices",
}


class SectionedCommand(click.Command):
    """A command whose help lists the options of `recipe_options` under headings, and its other options as usual."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        headings = find_headings()
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                sections.setdefault(headings.get(param.name or "", GENERAL), []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


@functools.cache
def find_headings() -> dict[str, str]:
    """Return the heading of each option that `recipe_options` adds, by the name of its argument."""
    command = click.command()(recipe_options(lambda **_: None))
    headings: dict[str, str] = {}
    heading = GENERAL
    for param in command.params:
        assert param.name is not None
        heading = SECTIONS.get(param.name, heading)
        headings[param.name] = heading
    return headings
