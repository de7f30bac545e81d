"""`preprocess diff`."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import click

from preprocess.cli.output import Output, output_options
from preprocess.cli.screens import show_difference
from preprocess.errors import format_quantity, shorten
from preprocess.terminal import Grid, Line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from preprocess.build.diff import Difference, Texts


@click.command()
@click.argument("a")
@click.argument("b")
@output_options
def diff(output: Output, a: str, b: str) -> None:
    """Compare the documents and the settings of two builds.

    A and B are names or folders of builds. Documents are compared by the hash of their text: those
    that only one of the builds has, and those that are in another split. The settings are the
    tokenizer, the vocabulary, the recipe, the sources, and the numbers of documents and tokens. The exit
    status is 0 if the builds are equal, and 1 if they differ, as that of diff.
    """
    from preprocess.build.diff import compare_builds
    from preprocess.shards.format import Build

    builds = Build(a), Build(b)
    with output.progress().phase("compare"):
        found = compare_builds(*builds)
    result = {"is_equal": found.is_empty, **dataclasses.asdict(found)}
    lines = _format(found, a, b)

    def screen() -> Sequence[Grid | Line]:
        settings = [(key, _shorten_json(old), _shorten_json(new)) for key, (old, new) in found.settings.items()]
        return [Line(text=lines[0])] if found.is_empty else show_difference(found, settings, (a, b))

    output.write(result, lines, screen)
    if not found.is_empty:
        raise click.exceptions.Exit(1)


def _format(found: Difference, a: str, b: str) -> list[str]:
    if found.is_empty:
        return [f"{a} and {b} have the same documents and settings"]
    kinds = ((found.only_in_a, f"only in {a}"), (found.only_in_b, f"only in {b}"), (found.in_other_split, "moved"))
    lines = [line for texts, label in kinds for line in _format_texts(texts, label, (a, b))]
    for key, values in found.settings.items():
        lines.append(f"{key}: {' -> '.join(map(_shorten_json, values))}")
    return lines


def _shorten_json(value: object) -> str:
    return shorten(json.dumps(value, ensure_ascii=False))


def _format_texts(texts: Texts, label: str, names: tuple[str, str]) -> list[str]:
    if not texts.num_texts:
        return []
    examples = ", ".join(f"{place.split} {place.document:,} of {names[place.build]}" for place in texts.examples)
    what = "to another split" if label == "moved" else ""
    return [f"{format_quantity(texts.num_texts, 'text')} {label} {what}".rstrip() + f", such as {examples}"]
