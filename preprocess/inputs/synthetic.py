"""The synthetic corpus: parallel Russian and English sentences with author, city and year.

The sentences are generated from the templates and words in synthetic.toml, so that the corpus needs
no download. The words are grouped by area, such as music. An author has a home city and three
areas; this gives a model something to learn from an author's control token.

Candidate pair k is a function of 16 random numbers, the keyed hashes of 16k … 16k + 15. A candidate
with a sentence that has occurred before is skipped. So the first n pairs of a seed are the same
however many pairs are generated.
"""

from __future__ import annotations

import functools
import importlib.resources
import itertools
import tomllib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from preprocess.shards.permutation import keyed_hash

FIRST_YEAR, NUM_YEARS = 1916, 110
AREAS_PER_AUTHOR = 3
HOME_CITY_PERCENT = 75  # of an author's pairs
CANDIDATES_PER_CHUNK = 4096
NUMBERS_PER_CANDIDATE = 16
VOCABULARY_FILE = "synthetic.toml"
LISTS = ("templates", "cities", "times", "states", "reasons", "events")


class Pair(NamedTuple):
    """One sentence in both languages, with its metadata."""

    number: int  # index of the pair in the corpus, from 0
    en: str
    ru: str
    author: str
    city: str
    year: int


def generate_pairs(num_pairs: int, *, seed: int) -> Iterator[Pair]:
    """Yield `num_pairs` pairs. No sentence occurs twice.

    Pair 0 is always by MagistrTheOne, from Krasnodar, in 2025. All sentences are remembered to
    avoid duplicates, which takes about 500 bytes of memory for each pair.
    """
    candidates = _iter_candidates(seed)
    seen: set[str] = set()
    pair_number = 0
    while pair_number < num_pairs:
        pair = _make_pair(pair_number, next(candidates))
        if pair.en not in seen and pair.ru not in seen:
            seen.update((pair.en, pair.ru))
            yield pair
            pair_number += 1


def _iter_candidates(seed: int) -> Iterator[list[int]]:
    """Yield the 16 random numbers of candidate 0, 1, 2, … without end."""
    chunk_size = CANDIDATES_PER_CHUNK * NUMBERS_PER_CANDIDATE
    for start in itertools.count(step=chunk_size):
        counters = np.arange(start, start + chunk_size, dtype=np.uint64)
        yield from keyed_hash(seed, counters).reshape(-1, NUMBERS_PER_CANDIDATE).tolist()


def read_vocabulary_file() -> bytes:
    """Return the bytes of synthetic.toml, the corpus' only input file.

    A build's manifest contains their sha256: any edit of the file, even of a comment, changes the
    `build_id` of every synthetic build.
    """
    return (importlib.resources.files("preprocess.inputs") / VOCABULARY_FILE).read_bytes()


@functools.cache
def load_vocabulary() -> dict[str, Any]:
    """Return synthetic.toml with entries split at " | " and with the authors' names composed."""
    raw = tomllib.loads(read_vocabulary_file().decode("utf-8"))
    words: dict[str, Any] = {key: [entry.split(" | ") for entry in raw[key]] for key in LISTS}
    words["areas"] = [
        {key: [entry.split(" | ") for entry in area[key]] for key in ("agents", "verbs", "objects")}
        for area in raw["areas"]
    ]
    men = [f"{first} {last}" for first in raw["male_first"] for last in raw["male_last"]]
    women = [f"{first} {last}" for first in raw["female_first"] for last in raw["female_last"]]
    words["authors"] = [*raw["handles"], *men, *women]
    return words


def _make_pair(pair_number: int, numbers: list[int]) -> Pair:
    """Return the pair that the 16 random `numbers` select. The metadata of pair 0 is fixed."""
    words = load_vocabulary()
    author_random, home_random, city_random, year_random, area_random, template_random, *part_randoms = numbers
    agent_random, verb_random, object_random, time_random, state_random, reason_random, event_random, *_ = part_randoms
    author = author_random % len(words["authors"]) if pair_number else 0
    is_home = home_random % 100 < HOME_CITY_PERCENT or not pair_number
    city = words["cities"][(author if is_home else city_random) % len(words["cities"])]
    year = FIRST_YEAR + (year_random % NUM_YEARS if pair_number else NUM_YEARS - 1)
    # An author's areas depend on the author's number only, so they are the same for every seed.
    area = words["areas"][(author + 5 * (area_random % AREAS_PER_AUTHOR)) % len(words["areas"])]
    agent = _pick(area["agents"], agent_random)
    verb, verb2 = (inflect(verb, agent[2]) for verb in _pick_two(area["verbs"], verb_random))
    object1, object2 = _pick_two(area["objects"], object_random)
    parts = {
        "agent": agent, "verb": verb, "verb2": verb2, "object": object1, "object2": object2,
        "time": _pick(words["times"], time_random), "state": _pick(words["states"], state_random),
        "reason": _pick(words["reasons"], reason_random), "event": _pick(words["events"], event_random),
        "city": city, "year": (str(year), str(year)),
    }  # fmt: skip
    template = _pick(words["templates"], template_random)
    en, ru = (
        format_sentence(template[side].format_map({key: part[side] for key, part in parts.items()})) for side in (0, 1)
    )
    return Pair(pair_number, en, ru, words["authors"][author], city[0], year)


def _pick(choices: Any, number: int) -> Any:
    return choices[number % len(choices)]


def _pick_two(choices: Any, number: int) -> tuple[Any, Any]:
    """Return two different elements of `choices`."""
    first, step = number % len(choices), number // len(choices) % (len(choices) - 1)
    return choices[first], _pick(choices, first + 1 + step)


def inflect(verb: list[str], gender: str) -> tuple[str, str]:
    """Return the verb in English and Russian. A feminine agent adds «а» to the Russian verb."""
    return verb[0], verb[1] + ("а" if gender == "f" else "")


def format_sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
