"""The state of a stream: its format, and the checks of a state from outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypedDict

from preprocess.errors import FolioError, MisuseError, shorten
from preprocess.stream.reading import Cursor

STATE_VERSION = 1
MAX_NUMBER = 1 << 62  # in a state; the sum of two still fits 64 bits
Identity = dict[str, str | int | None]  # the settings and the corpus of a stream


class StreamState(TypedDict):
    """A position in a stream, as JSON values."""

    version: int
    stream: Identity  # of the stream that the state belongs to
    group: int
    drawn: int  # blocks of the group that have been returned
    cursor: dict[str, int]  # the Cursor at which the group begins, by the names of its fields
    times_sha256: str  # of the modification times or versions of the files; states of earlier versions have none


@dataclass(frozen=True)
class Position:
    """A position in a stream: after the first `num_drawn` blocks of `group`."""

    group_start: Cursor = field(default_factory=Cursor)
    group: int = 0
    num_drawn: int = 0


def make_state(position: Position, identity: Identity, times_sha256: str) -> StreamState:
    """Return the state of the stream `identity` at `position`."""
    return {
        "version": STATE_VERSION,
        "stream": dict(identity),
        "group": position.group,
        "drawn": position.num_drawn,
        "cursor": asdict(position.group_start),
        "times_sha256": times_sha256,
    }


def parse_state(state: Mapping[str, Any], identity: Identity) -> Position:
    """Return the position in `state`.

    Raises MisuseError if it belongs to another stream than `identity`, FolioError if it is damaged.
    The stream checks later, when it reads, whether the files have a document at the position.
    """
    _check_identity(state, identity)
    try:
        cursor = Cursor(*(state["cursor"][f.name] for f in fields(Cursor)))
        position = Position(cursor, state["group"], state["drawn"])
    except (KeyError, TypeError) as e:
        raise FolioError("the state of the stream has no complete position; use another checkpoint") from e
    numbers = (position.group, position.num_drawn, *asdict(cursor).values())
    if any(type(n) is not int or not 0 <= n <= MAX_NUMBER for n in numbers) or (
        # The first group begins with the corpus, every other one after the first token of a document.
        cursor != Cursor() if position.group == 0 else cursor.offset == 0
    ):
        raise FolioError("the state of the stream has an impossible position; use another checkpoint")
    return position


def _check_identity(state: Mapping[str, Any], identity: Identity) -> None:
    version = state.get("version") if isinstance(state, Mapping) else None
    if version != STATE_VERSION:
        raise MisuseError(
            f"the state has version {shorten(repr(version))}, this Folio reads version {STATE_VERSION}; "
            "use the Folio that wrote it"
        )
    stored = state.get("stream")
    stored = stored if isinstance(stored, Mapping) else {}
    for name, value in identity.items():
        if name not in stored or stored[name] != value:
            what = "recipe, files or tokenizer" if name == "corpus" else name
            values = "" if name == "corpus" else f" ({shorten(repr(stored.get(name)))}, now {value!r})"
            raise MisuseError(
                f"the state belongs to a stream with another {what}{values}; "
                "open the stream with its settings, or start a new one"
            )
