"""The questions and answers of the corpus synthetic-chat."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from preprocess.errors import MisuseError
from preprocess.inputs.synthetic_chats import Question, generate_questions
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.format import Build
from tests.preprocess.build.helpers import run_build


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return list(generate_questions(12_000, seed=0))


def test_no_question_occurs_twice_and_a_question_has_one_answer(questions: list[Question]) -> None:
    assert len({each.question for each in questions}) == 12_000
    assert [each.number for each in questions] == list(range(12_000))


def test_answers_are_translations_or_who_it_was(questions: list[Question]) -> None:
    russian = {}
    for each in questions:
        if each.question.startswith("Translate into Russian: "):
            assert each.question == f"Translate into Russian: {each.sentence}" and each.lang == "en"
            russian[each.sentence] = each.answer
        elif each.question.startswith("Переведи на английский: "):
            assert each.answer == each.sentence and each.lang == "ru"
        elif each.question.endswith(" Who was it?"):
            assert each.question == f"{each.sentence} Who was it?"
            assert each.sentence.startswith(each.answer.removesuffix("."))
        else:
            assert each.question.startswith(each.answer.removesuffix(".")) and each.question.endswith(" Кто это был?")
    for each in questions:
        if each.question.startswith("Переведи") and each.sentence in russian:
            assert each.question == f"Переведи на английский: {russian[each.sentence]}"


def test_generate_questions_never_changes() -> None:
    text = "".join(f"{each}\n" for each in generate_questions(100, seed=0))
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "c09dfddcacd91ebeee000c50d752bc3943ddf8cc1622c610d5ca09dca25ef47a"
    )


def test_other_seeds_give_other_questions() -> None:
    assert list(generate_questions(5, seed=1)) != list(generate_questions(5, seed=2))


def test_more_questions_than_there_are_is_an_error(questions: list[Question]) -> None:
    with pytest.raises(
        MisuseError, match=r"^num_pairs must be at most 1\d,\d{3} for questions and answers, got 99,999"
    ):
        list(generate_questions(99_999, seed=0))


def test_build_has_the_answers_in_the_loss_mask_and_each_sentence_in_one_split(tmp_path: Path) -> None:
    recipe = load_recipe("synthetic-chat", num_pairs=3000, tokenizer="byte", val_fraction=0.3)
    run_build(recipe, tmp_path / "chats")
    opened = Build(tmp_path / "chats")
    by_text = {f"{each.question}{each.answer}": each for each in generate_questions(3000, seed=0)}
    sentences: dict[str, set[str]] = {"train": set(), "val": set()}
    for split in ("train", "val"):
        for number in range(opened.manifest.splits[split].documents):
            ids, mask = opened.document(split, number), opened.document_mask(split, number)
            each = by_text[bytes(ids[ids < 256].astype("u1")).decode()]
            learnt = ids[mask]
            assert bytes(learnt[learnt < 256].astype("u1")).decode() == each.answer
            sentences[split].add(each.sentence)
    assert sentences["train"] and sentences["val"] and not sentences["train"] & sentences["val"]
    assert sum(entry.documents for entry in opened.manifest.splits.values()) == 3000
