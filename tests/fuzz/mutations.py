"""Damage files in the ways in which files are damaged: flipped bits, cuts, repeated parts, odd values.

Every function takes a random generator, so a seed and a number identify a damaged file.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

ODD_BYTES = (b"\0", b"\xff", b"\x80", b"\n", b"\r\n", b'"', b"\\", b"[", b"{", b"\xef\xbb\xbf", b"9" * 5_000)
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, "", " ", "\0", "../x", "/etc/passwd",
    "a" * 100_000, "\ud800", "<U8", "é\u0301", [], {}, [[]], [None], {"": None}, [0] * 1000,
)  # fmt: skip
MAX_INSERTED_BYTES = 4096


def mutate_bytes(data: bytes, random_: random.Random) -> bytes:
    """Return `data` with one to three changes of its bytes."""
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        data = random_.choice(_BYTE_MUTATIONS)(data, random_)
    return data


def _flip_bit(data: bytes, random_: random.Random) -> bytes:
    if not data:
        return data
    position = random_.randrange(len(data))
    return data[:position] + bytes([data[position] ^ (1 << random_.randrange(8))]) + data[position + 1 :]


def _set_byte(data: bytes, random_: random.Random) -> bytes:
    if not data:
        return data
    position = random_.randrange(len(data))
    return data[:position] + bytes([random_.choice((0, 1, 0x7F, 0x80, 0xFF))]) + data[position + 1 :]


def _choose_range(data: bytes, random_: random.Random) -> tuple[int, int]:
    start = random_.randrange(len(data) + 1)
    return start, min(start + random_.randrange(MAX_INSERTED_BYTES), len(data))


def _delete_range(data: bytes, random_: random.Random) -> bytes:
    start, stop = _choose_range(data, random_)
    return data[:start] + data[stop:]


def _repeat_range(data: bytes, random_: random.Random) -> bytes:
    start, stop = _choose_range(data, random_)
    return data[:stop] + data[start:stop] + data[stop:]


def _truncate(data: bytes, random_: random.Random) -> bytes:
    return data[: random_.randrange(len(data) + 1)]


def _insert_odd_bytes(data: bytes, random_: random.Random) -> bytes:
    position = random_.randrange(len(data) + 1)
    return data[:position] + random_.choice(ODD_BYTES) + data[position:]


def _overwrite_with_random_bytes(data: bytes, random_: random.Random) -> bytes:
    start, stop = _choose_range(data, random_)
    return data[:start] + random_.randbytes(stop - start) + data[stop:]


_BYTE_MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip_bit, _flip_bit, _set_byte, _delete_range, _repeat_range, _truncate, _insert_odd_bytes,
    _overwrite_with_random_bytes,
)  # fmt: skip


def mutate_json(data: bytes, random_: random.Random) -> bytes:
    """Return the JSON text `data` with one value replaced, removed or renamed, or with changed bytes.

    A damaged byte rarely gives valid JSON, so most changes are made to the parsed value: they reach
    the code behind the parser.
    """
    if random_.random() < 0.3:
        return mutate_bytes(data, random_)
    value = json.loads(data)
    parents = _list_containers(value)
    if not parents:
        return mutate_bytes(data, random_)
    parent = random_.choice(parents)
    key = random_.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
    action = random_.randrange(8)
    if action == 0:
        del parent[key]
    elif action == 1 and isinstance(parent, dict):
        parent[random_.choice(("", "x", key + "s", "\0"))] = parent.pop(key)
    elif action == 2 and isinstance(parent, list):
        parent.append(parent[key])
    elif action == 3 and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
        parent[key] += random_.choice((-1, 1, 10, 0.5, -(10**6), 10**12))
    else:
        parent[key] = random_.choice(ODD_VALUES)
    return json.dumps(value, ensure_ascii=True).encode()


def mutate_json_lines(data: bytes, random_: random.Random) -> bytes:
    """Return the JSON lines `data` with a change in one line, or with changed bytes."""
    lines = data.split(b"\n")
    index = random_.randrange(len(lines))
    if random_.random() < 0.3 or not lines[index].strip():
        return mutate_bytes(data, random_)
    lines[index] = mutate_json(lines[index], random_)
    return b"\n".join(lines)


def _list_containers(value: Any) -> list[Any]:
    """Return `value` and all arrays and objects in it that are not empty."""
    found, waiting = [], [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict | list) and item:
            found.append(item)
            waiting.extend(item.values() if isinstance(item, dict) else item)
    return found
