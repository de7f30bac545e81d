"""The rules of the filters for one document, in plain Python: slow, but simple to compare with their descriptions."""

from __future__ import annotations

import unicodedata

from preprocess.filters.characters import SINGLE_RANGES


def is_space(character: str) -> bool:
    return character.isspace()


def is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M" or unicodedata.category(character) == "Cf"


def is_single(character: str) -> bool:
    in_range = any(first <= ord(character) <= last for first, last in SINGLE_RANGES)
    return unicodedata.category(character)[0] == "L" and in_range


def is_word(character: str) -> bool:
    return (unicodedata.category(character)[0] in "LN" and not is_single(character)) or is_mark(character)


def split_words(text: str) -> list[str]:
    """Return the words of a text, as words.py defines them."""
    words: list[str] = []
    in_word = [
        is_word(c) or (c in ".'’" and 0 < i < len(text) - 1 and is_word(text[i - 1]) and is_word(text[i + 1]))
        for i, c in enumerate(text)
    ]
    for i, character in enumerate(text):
        if is_space(character):
            continue
        previous = text[i - 1] if i else " "
        if in_word[i]:
            continues = i > 0 and (in_word[i - 1] or (is_single(previous) and is_mark(character)))
        elif is_single(character):
            continues = False
        else:
            continues = character == previous and not in_word[i - 1]
        if continues:
            words[-1] += character
        else:
            words.append(character)
    return words
