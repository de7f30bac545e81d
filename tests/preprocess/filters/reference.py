"""The rules of the filters for one document, in plain Python: slow, but simple to compare with their descriptions."""

from __future__ import annotations

import re
import unicodedata

from preprocess.filters.characters import SINGLE_RANGES, SYMBOLS, TERMINALS
from preprocess.recipes.filter_settings import C4, FinewebQuality, GopherQuality, GopherRepetition


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


def find_first(rules: list[tuple[str, bool]]) -> str | None:
    """Return the first reason whose condition is true."""
    return next((reason for reason, is_broken in rules if is_broken), None)


def is_symbol(word: str) -> bool:
    return all(ord(character) in SYMBOLS for character in word)


def judge_gopher_quality(text: str, settings: GopherQuality) -> str | None:
    words, lines = split_words(text), text.splitlines()
    plain = [word for word in words if not is_symbol(word)]
    if len(plain) < settings.min_words:
        return "too_few_words"
    mean = sum(map(len, plain)) / max(len(plain), 1)
    bullets = sum(line.strip().startswith(("-", "•")) for line in lines)
    ellipses = sum(line.strip().endswith(("...", "…")) for line in lines)
    alphabetic = sum(any(c.isalpha() for c in word) for word in words)
    num_words, num_lines = max(len(words), 1), max(len(lines), 1)
    return find_first(
        [
            ("too_many_words", len(plain) > settings.max_words),
            ("words_too_short", mean < settings.min_mean_word_length),
            ("words_too_long", mean > settings.max_mean_word_length),
            ("too_many_hash_signs", text.count("#") / num_words > settings.max_symbol_ratio),
            ("too_many_ellipses", (text.count("...") + text.count("…")) / num_words > settings.max_symbol_ratio),
            ("too_many_bullet_lines", bullets / num_lines > settings.max_bullet_lines),
            ("too_many_lines_end_with_ellipsis", ellipses / num_lines > settings.max_ellipsis_lines),
            ("too_few_alphabetic_words", alphabetic / num_words < settings.min_alphabetic_words),
            ("too_few_stop_words", len({*words} & {*settings.stop_words}) < settings.min_stop_words),
        ]
    )


def count_repeated(parts: list[str]) -> tuple[int, int]:
    """Return how many parts are equal to an earlier one, and their characters."""
    repeated = [part for i, part in enumerate(parts) if part in parts[:i]]
    return len(repeated), sum(map(len, repeated))


def measure_top(words: list[str], size: int) -> int:
    """Return the characters of the most frequent sequence, with spaces, times its number."""
    grams = [" ".join(words[i : i + size]) for i in range(len(words) - size + 1)]
    if not grams:
        return 0
    most_frequent = max(grams, key=grams.count)  # the first of several
    return len(most_frequent) * grams.count(most_frequent)


def measure_duplicates(words: list[str], size: int) -> int:
    """Return the characters of repeated sequences, read from left to right without overlaps."""
    seen, position, total = set(), 0, 0
    while position + size <= len(words):
        gram = tuple(words[position : position + size])
        if gram in seen:
            total += sum(map(len, gram))
            position += size
        else:
            seen.add(gram)
            position += 1
    return total


def judge_gopher_repetition(text: str, settings: GopherRepetition) -> str | None:
    if not text:
        return "empty"
    words, paragraphs, lines = split_words(text), re.split("\n{2,}", text.strip()), re.split("\n+", text)
    rules = []
    for name, parts in (("paragraph", paragraphs), ("line", lines)):
        number, characters = count_repeated(parts)
        rules += [
            (f"duplicate_{name}s", number / len(parts) > getattr(settings, f"max_duplicate_{name}s")),
            (
                f"duplicate_{name}_characters",
                characters / len(text) > getattr(settings, f"max_duplicate_{name}_characters"),
            ),
        ]
    for size in (2, 3, 4):
        limit = getattr(settings, f"max_top_{size}_gram")
        rules.append((f"top_{size}_gram", measure_top(words, size) / len(text) > limit))
    for size in range(5, 11):
        limit = getattr(settings, f"max_duplicate_{size}_grams")
        rules.append((f"duplicate_{size}_grams", measure_duplicates(words, size) / len(text) > limit))
    return find_first(rules)


def judge_fineweb_quality(text: str, settings: FinewebQuality) -> str | None:
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return "empty"
    num_ends = sum(ord(line[-1]) in TERMINALS for line in lines)
    num_short = sum(len(line) <= settings.short_line_characters for line in lines)
    _, repeated = count_repeated(lines)
    num_characters, num_words = len(text.replace("\n", "")), len(split_words(text))
    return find_first(
        [
            ("too_few_lines_end_with_punctuation", num_ends / len(lines) < settings.min_punctuated_lines),
            ("too_many_short_lines", num_short / len(lines) > settings.max_short_lines),
            ("duplicate_line_characters", repeated / num_characters > settings.max_duplicate_line_characters),
            ("too_many_line_feeds", text.count("\n") / num_words > settings.max_line_feeds_per_word),
        ]
    )


def count_sentences(line: str) -> int:
    count, has_end = 1, False
    for word in split_words(line):
        if is_word(word[0]) or is_single(word[0]):
            count, has_end = count + has_end, False
        elif ord(word[0]) in TERMINALS and not word.startswith(".."):
            has_end = True
    return count


def judge_c4(text: str, settings: C4) -> tuple[str | None, str]:
    """Return the reason and the new text."""
    kept, num_sentences = [], 0
    phrases = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
    for line in map(str.strip, text.splitlines()):
        words = line.split()
        if any(len(word) > settings.max_word_characters for word in words):
            continue
        if settings.citations:
            line = re.sub(r"\[\d*\]|\[edit\]|\[citation needed\]", "", line)
        if settings.terminal_punctuation and (not line.endswith((".", "?", "!", '"', "'")) or line.endswith("...")):
            continue
        if len(words) < settings.min_line_words:
            continue
        lowered = line.lower()
        if "lorem ipsum" in lowered:
            return "lorem_ipsum", ""
        if "javascript" in lowered:
            continue
        if "{" in line:
            return "curly_bracket", ""
        if any(phrase in lowered for phrase in phrases):
            continue
        num_sentences += count_sentences(line)
        kept.append(line)
    return ("too_few_sentences" if num_sentences < settings.min_sentences else None), "\n".join(kept).strip()
