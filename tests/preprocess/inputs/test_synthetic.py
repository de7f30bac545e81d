"""The synthetic corpus is reproducible, free of duplicates, grammatical, and varied enough for 3,000 pieces."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.inputs.synthetic import Pair, generate_pairs, load_vocabulary
from preprocess.shards.format import format_control_token
from preprocess.tokenizers.sentencepiece_bpe import train


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return list(generate_pairs(10_000, seed=0))


def test_generate_pairs_gives_distinct_sentences(pairs: list[Pair]) -> None:
    assert [p.number for p in pairs] == list(range(10_000))
    assert len({p.en for p in pairs} | {p.ru for p in pairs}) == 20_000


def test_pairs_have_a_hundred_authors_cities_and_years(pairs: list[Pair]) -> None:
    for field in ("author", "city", "year"):
        values = {getattr(p, field) for p in pairs}
        assert len(values) >= 100
        assert len({format_control_token(field, v) for v in values}) == len(values)
    assert (pairs[0].author, pairs[0].city, pairs[0].year) == ("MagistrTheOne", "Krasnodar", 2025)
    assert {p.year for p in pairs} == set(range(1916, 2026))


def test_generate_pairs_never_changes() -> None:
    text = "".join(f"{p}\n" for p in generate_pairs(100, seed=0))
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "bc08f2e4fc68ec8adc56f8430c0893a3ce3d99e8b7ec87d89ba73faf9a2aab64"
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(1, 50), st.integers(0, 50))
def test_fewer_pairs_are_a_prefix_of_more(seed: int, num_pairs: int, num_more: int) -> None:
    pairs = list(generate_pairs(num_pairs, seed=seed))
    assert pairs == list(generate_pairs(num_pairs + num_more, seed=seed))[:num_pairs]


def test_other_seeds_give_other_pairs() -> None:
    assert next(generate_pairs(1, seed=1)).en != next(generate_pairs(1, seed=2)).en


def test_sentences_are_formatted_as_sentences(pairs: list[Pair]) -> None:
    for p in pairs:
        assert re.fullmatch(r"[A-Z][A-Za-z0-9' ,-]+\.", p.en), p.en
        assert re.fullmatch(r"[А-ЯЁ][А-Яа-яЁё0-9 ,-]+\.", p.ru), p.ru
        assert "  " not in p.en + p.ru and " ," not in p.en + p.ru


def test_years_and_cities_in_sentences_match_the_metadata(pairs: list[Pair]) -> None:
    forms = dict(load_vocabulary()["cities"])
    for p in pairs:
        for year in re.findall(r"\d{4}", p.en + p.ru):
            assert int(year) == p.year
        if f"in {p.city} " in p.en:
            assert forms[p.city].lower() in p.ru.lower()
    assert sum(p.city in p.en for p in pairs) > 3_000 and sum(str(p.year) in p.ru for p in pairs) > 1_000


def test_russian_verbs_agree_with_the_gender_of_the_agent(pairs: list[Pair]) -> None:
    agents = {ru: gender for area in load_vocabulary()["areas"] for _, ru, gender in area["agents"]}
    verbs = "|".join(
        sorted({ru for area in load_vocabulary()["areas"] for _, ru in area["verbs"]}, key=len, reverse=True)
    )
    for p in pairs:
        agent, ending = re.search(rf"({'|'.join(agents)}) (?:{verbs})(а?) ", p.ru, re.IGNORECASE).groups()
        assert ending == ("а" if agents[agent[0].lower() + agent[1:]] == "f" else ""), p.ru


def test_most_pairs_of_an_author_are_from_the_home_city(pairs: list[Pair]) -> None:
    author_pairs = [p for p in pairs if p.author == "MagistrTheOne"]
    assert len(author_pairs) > 40 and sum(p.city == "Krasnodar" for p in author_pairs) > len(author_pairs) / 2


def test_sentences_suffice_to_train_3000_pieces(pairs: list[Pair]) -> None:
    assert train((text for p in pairs for text in (p.en, p.ru)), num_pieces=3_000).vocab_size == 3_000
