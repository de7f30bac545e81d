"""What the tests of sharing compare and forge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preprocess.progress import Progress
from preprocess.shards.files import readable_json
from preprocess.shards.format import seal

QUIET = Progress(quiet=True)


def list_all(folder: Path) -> list[str]:
    """Return the paths of everything in `folder` except locks, which remain."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".lock")


def edit_manifest(data: bytes, edit: Callable[[dict[str, Any]], object]) -> bytes:
    """Return a manifest that `edit` has changed, sealed again as somebody who means harm would."""
    manifest = json.loads(data)
    edit(manifest)
    return readable_json(seal(manifest))


def flip_bit(data: bytes, number: int) -> bytes:
    """Return `data` with another bit `number`."""
    changed = bytearray(data)
    changed[number // 8] ^= 1 << number % 8
    return bytes(changed)
