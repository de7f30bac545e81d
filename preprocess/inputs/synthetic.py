"""The synthetic corpus: parallel Russian and English sentences, each pair with an author, a city and a year.

Seeded, endless for practical purposes, and made of nothing but synthetic.toml: it needs no network. What an author
writes about, and from where, depends on the author, so that a model has something to learn from a control token.
"""

from __future__ import annotations

import functools
import importlib.resources
import tomllib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from preprocess.shards.windows import keyed_hash

FIRST_YEAR, NUM_YEARS = 1916, 110
AREAS_PER_AUTHOR = 3
AT_HOME_PERCENT = 75  # of an author's pairs come from the author's own city
CANDIDATES_PER_CHUNK = 4096
SLOTS = 16  # random numbers for a candidate
VOCABULARY_FILE = "synthetic.toml"
LISTS = ("templates", "cities", "times", "states", "reasons", "events")


class Pair(NamedTuple):
    """One sentence in both languages, and where it is from."""

    number: int
    en: str
    ru: str
    author: str
    city: str
    year: int


def generate_pairs(num_pairs: int, *, seed: int) -> Iterator[Pair]:
    """`num_pairs` pairs, no two alike in either language; fewer pairs are a prefix of more.

    Pair 0 is by MagistrTheOne, from Krasnodar, of 2025. Remembers every sentence made: about 400 bytes a pair.
    """
    seen: set[str] = set()
    number = first = 0
    while number < num_pairs:
        candidates = np.arange(first * SLOTS, (first + CANDIDATES_PER_CHUNK) * SLOTS, dtype=np.uint64)
        for numbers in keyed_hash(seed, candidates).reshape(-1, SLOTS).tolist():
            pair = _make(number, numbers)
            if pair.en in seen or pair.ru in seen:
                continue
            seen.update((pair.en, pair.ru))
            yield pair
            number += 1
            if number == num_pairs:
                return
        first += CANDIDATES_PER_CHUNK


def vocabulary_file() -> bytes:
    """What the corpus is made of: part of a build's identity, as a text file's bytes are."""
    return (importlib.resources.files("preprocess.inputs") / VOCABULARY_FILE).read_bytes()


@functools.cache
def _vocabulary() -> dict[str, Any]:
    """synthetic.toml with every entry split at its bars, and the authors' names put together."""
    raw = tomllib.loads(vocabulary_file().decode("utf-8"))
    words: dict[str, Any] = {key: [entry.split(" | ") for entry in raw[key]] for key in LISTS}
    words["areas"] = [
        {key: [entry.split(" | ") for entry in area[key]] for key in ("agents", "verbs", "objects")}
        for area in raw["areas"]
    ]
    men = [f"{first} {last}" for first in raw["male_first"] for last in raw["male_last"]]
    women = [f"{first} {last}" for first in raw["female_first"] for last in raw["female_last"]]
    words["authors"] = [*raw["handles"], *men, *women]
    return words


def _make(number: int, numbers: list[int]) -> Pair:
    words = _vocabulary()
    (of_author, of_home, of_city, of_year, of_area, of_template, of_agent, of_verb, of_object, *others) = numbers
    author = of_author % len(words["authors"]) if number else 0
    is_home = of_home % 100 < AT_HOME_PERCENT or not number
    city = words["cities"][(author if is_home else of_city) % len(words["cities"])]
    year = FIRST_YEAR + (of_year % NUM_YEARS if number else NUM_YEARS - 1)
    # Fixed strides, not the seed, give an author three areas: what an author writes about is the author's.
    area = words["areas"][(author + 5 * (of_area % AREAS_PER_AUTHOR)) % len(words["areas"])]
    agent = _pick(area["agents"], of_agent)
    verb, verb2 = (_inflect(v, agent[2]) for v in _pick_two(area["verbs"], of_verb))
    object1, object2 = _pick_two(area["objects"], of_object)
    parts = {
        "agent": agent, "verb": verb, "verb2": verb2, "object": object1, "object2": object2,
        "time": _pick(words["times"], others[0]), "state": _pick(words["states"], others[1]), "reason": _pick(words["reasons"], others[2]),
        "event": _pick(words["events"], others[3]), "city": city, "year": (str(year), str(year)),
    }  # fmt: skip
    template = _pick(words["templates"], of_template)
    en, ru = (_sentence(template[side].format_map({key: part[side] for key, part in parts.items()})) for side in (0, 1))
    return Pair(number, en, ru, words["authors"][author], city[0], year)


def _pick(choices: Any, number: int) -> Any:
    return choices[number % len(choices)]


def _pick_two(choices: Any, number: int) -> tuple[Any, Any]:
    """Two that differ."""
    first, step = number % len(choices), number // len(choices) % (len(choices) - 1)
    return choices[first], _pick(choices, first + 1 + step)


def _inflect(verb: list[str], gender: str) -> tuple[str, str]:
    return verb[0], verb[1] + ("а" if gender == "f" else "")


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
