"""What the tests of sharing compare and forge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preprocess.progress import Progress
from preprocess.shards.files import readable_json
from preprocess.shards.format import BUILD_LOG, MANIFEST, seal
from tests.conftest import file_bytes

QUIET = Progress(quiet=True)


def read_shared(folder: Path) -> dict[str, bytes]:
    """Return the content of the files of a build that are shared, by their path in the folder."""
    return {name: data for name, data in file_bytes(folder).items() if name != BUILD_LOG}


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


__all__ = ["MANIFEST", "QUIET", "edit_manifest", "flip_bit", "list_all", "read_shared"]
