"""Print one document of a build for `preprocess show`."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from preprocess.cli.output import Output, echo_parts, write_json_list
from preprocess.console import has_colours
from preprocess.errors import FolioError, one_line, printable, shorten

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from preprocess.shards.files import JsonObject
    from preprocess.shards.format import Build
    from preprocess.tokenizers.decode_build import DocumentPart, ShownToken

# Pale colours of the palette of 256, and black on them, for terminals with a light or a dark background.
TINTS, INK = (153, 157, 223, 218, 229, 189), 16
LINE_FEED = "\u21b5"


@dataclass(frozen=True)
class DecodedDocument:
    """A document, divided into runs of text and control tokens."""

    parts: Sequence[DocumentPart]
    has_chats: bool  # whether the build has loss masks

    def as_json(self) -> JsonObject:
        """Return what --json prints. Only a build with chats has control tokens inside of a text."""
        before, inside, after = self._divide()
        result: JsonObject = {
            "control_before": [part.as_text() for part in before],
            "text": b"".join(part.data for part in inside).decode("utf-8", errors="replace"),
            "control_after": [part.as_text() for part in after],
        }
        if self.has_chats:
            result["parts"] = [
                {"text": part.as_text(), "is_control": part.is_control, "is_learnt": part.is_learnt}
                for part in self.parts
            ]
        return result

    def print(self, *, quiet: bool) -> None:
        """Write the text to standard output, and the control tokens at its ends to standard error.

        On a terminal, control characters are escaped; in a document of a build with chats, the text
        that is learnt is green, and control tokens are dim.
        """
        before, inside, after = ([], self.parts, []) if self.has_chats else self._divide()
        is_terminal = sys.stdout is not None and sys.stdout.isatty()
        if not quiet and not self.has_chats:
            click.echo(one_line(" ".join(part.as_text() for part in before)), err=True)
        for part in inside:
            if not is_terminal:
                click.echo(part.data, nl=False)  # bytes are not changed by the encoding of the locale
            elif self.has_chats and has_colours(sys.stdout):
                color = "green" if part.is_learnt else None
                click.secho(printable(part.as_text()), nl=False, fg=color, dim=part.is_control)
            else:
                click.echo(printable(part.as_text()), nl=False)
        if not quiet and not self.has_chats:
            click.echo(one_line(" ".join(part.as_text() for part in after)), err=True)

    def _divide(self) -> tuple[Sequence[DocumentPart], Sequence[DocumentPart], Sequence[DocumentPart]]:
        """Return the control tokens before the text, the text, and the control tokens after it."""
        start, end = 0, len(self.parts)
        while start < end and self.parts[start].is_control:
            start += 1
        while end > start and self.parts[end - 1].is_control:
            end -= 1
        return self.parts[:start], self.parts[start:end], self.parts[end:]


def print_tokens(tokens: Iterable[ShownToken]) -> None:
    """Write the tokens of a document to standard output: tinted text on a terminal with colours, else a line for each.

    Equal ids have equal tints, unless two neighbours would have the same. A line feed is shown by a sign. A line
    has the id and the text, with a tab between them.
    """
    if not has_colours(sys.stdout):
        echo_parts(f"{token.id}\t{one_line(token.text)}\n" for token in tokens)
        return
    tint = -1
    for token in tokens:
        tint = (token.id + (token.id % len(TINTS) == tint)) % len(TINTS)
        text = one_line(token.text.replace("\n", LINE_FEED))
        if token.is_control:
            click.secho(text, nl=False, bold=True, reverse=True)
        else:
            click.secho(text, nl=False, fg=INK, bg=TINTS[tint])
        click.echo("\n" * token.text.count("\n"), nl=False)
    click.echo()


def find_number(build: Build, split: str, text: str) -> int:
    """Return the number of the first document of `split` with `text`. Raises FolioError if there is none."""
    from preprocess.tokenizers.decode_build import find_document

    with build.reading():
        number = find_document(build, split, text)
    if number is None:
        raise FolioError(
            f"no document of the {split} split of {build.name} contains {shorten(repr(text))}; look for a "
            "shorter text, or choose another --split"
        )
    return number


def _name_source(build: Build, number: int) -> str:
    """Return the name of a source. Raises FolioError if the manifest does not have it."""
    if number >= len(build.manifest.sources):
        raise FolioError(
            f"{build.folder} has documents of source {number}, which is not in its manifest; check it with "
            "`preprocess verify`"
        )
    return str(build.manifest.sources[number]["name"])


def show_document(output: Output, build: Build, split: str, number: int, *, tokens: bool = False) -> None:
    """Print document `number` of `split`, or its tokens."""
    from preprocess.tokenizers.decode_build import decode_document, decode_tokens

    with build.reading():
        shown = decode_tokens(build, split, number) if tokens else iter(())
        document = None if tokens else DecodedDocument(decode_document(build, split, number), build.has_masks)
        record = build.document_record(split, number)
    source, position = _name_source(build, int(record["source"])), int(record["position"])
    where = {"split": split, "document": number, "source": source, "position": position}
    if output.as_json:
        if document is None:
            write_json_list(where, "tokens", map(dataclasses.asdict, shown))
        else:
            output.write({**where, **document.as_json()}, [])
        return
    if not output.quiet:
        line = f"document {number:,} of {split}: position {position:,} of {shorten(source)}"
        click.echo(one_line(line), err=True)
    if document is None:
        print_tokens(shown)
    else:
        document.print(quiet=output.quiet)
