"""Questions and answers about the sentences of the synthetic corpus, for training on chats without a download.

The sentences are put together from the agents, verbs and objects in synthetic.toml. A question asks
for the translation of such a sentence, or who did what it says. All questions are numbered, and a
keyed permutation selects the first n. So no question occurs twice, and the first n of a seed are the
same however many are generated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from preprocess.errors import MisuseError
from preprocess.inputs.synthetic import format_sentence, inflect, load_vocabulary
from preprocess.shards.permutation import keyed_hash, permute

# The language of the question, the question about a sentence, the language of the answer, and whether
# the answer is the whole sentence or only who did it.
KINDS = (
    (0, "Translate into Russian: {}", 1, True),
    (1, "Переведи на английский: {}", 0, True),
    (0, "{} Who was it?", 0, False),
    (1, "{} Кто это был?", 1, False),
)
LANGUAGES = ("en", "ru")


class Question(NamedTuple):
    """A question and its answer."""

    number: int  # index of the question in the corpus, from 0
    question: str
    answer: str
    lang: str  # of the question
    sentence: str  # the English sentence: questions about the same one are on the same side of the split


def generate_questions(num_questions: int, *, seed: int) -> Iterator[Question]:
    """Yield the first `num_questions` questions of `seed`, each at most once.

    Raises MisuseError if there are not so many.
    """
    sentences = [
        (agent, verb, thing)
        for area in load_vocabulary()["areas"]
        for agent in area["agents"]
        for verb in area["verbs"]
        for thing in area["objects"]
    ]
    total = len(sentences) * len(KINDS)
    if num_questions > total:
        raise MisuseError(
            f"num_pairs must be at most {total:,} for questions and answers, got {num_questions:,}; lower --num-pairs"
        )
    key = keyed_hash(seed, np.frombuffer(b"question", dtype="<u8"))
    keys = np.repeat(key, num_questions)
    chosen = permute(np.arange(num_questions, dtype=np.uint64), total, keys).tolist()
    for number, index in enumerate(chosen):
        agent, verb, thing = sentences[index // len(KINDS)]
        question_side, template, answer_side, is_whole = KINDS[index % len(KINDS)]
        inflected = inflect(verb, agent[2])
        texts = [format_sentence(f"{agent[side]} {inflected[side]} {thing[side]}") for side in (0, 1)]
        answer = texts[answer_side] if is_whole else format_sentence(agent[answer_side])
        question = template.format(texts[question_side])
        yield Question(number, question, answer, LANGUAGES[question_side], texts[0])
