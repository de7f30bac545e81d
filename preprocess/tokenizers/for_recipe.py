"""Load the tokenizer of a recipe, and compare what the recipe asks for with what the tokenizer has."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from preprocess.errors import MisuseError, format_quantity, one_line, shorten
from preprocess.recipes.schema import Recipe
from preprocess.shards.files import sha256_bytes
from preprocess.tokenizers import TRAINED_KINDS, is_tokenizer_path, load_tokenizer_by_name
from preprocess.tokenizers.interface import Tokenizer

NUM_NAMED = 3  # tokens in a message


class LoadedTokenizer(NamedTuple):
    """A recipe whose settings suit its tokenizer."""

    recipe: Recipe  # with `eot` other than "auto", and the hash of a tokenizer that is a file
    tokenizer: Tokenizer | None  # None if it is to be trained
    warnings: list[str]


def load_recipe_tokenizer(recipe: Recipe) -> LoadedTokenizer:
    """Load the tokenizer of `recipe`, unless it is to be trained.

    Raises MisuseError if the recipe asks for end-of-text tokens that the tokenizer does not have,
    and the errors of `load_tokenizer_by_name`.
    """
    wants_eot = recipe.eot != "none"
    if recipe.tokenizer in TRAINED_KINDS:
        return LoadedTokenizer(dataclasses.replace(recipe, eot="append" if wants_eot else "none"), None, [])
    tokenizer = load_tokenizer_by_name(recipe.tokenizer, has_eot=wants_eot)
    has_eot = wants_eot and tokenizer.eot_id is not None
    if recipe.eot == "append" and not has_eot:
        raise MisuseError(
            f"eot is 'append', but the tokenizer {shorten(recipe.tokenizer)} has no end-of-text token; choose another "
            "tokenizer, add the special token <|endoftext|> to this one, or pass --eot none to join documents without "
            "a separator"
        )
    warnings = list(_list_warnings(recipe, tokenizer))
    sha256 = sha256_bytes(b"".join(tokenizer.files.values())) if is_tokenizer_path(recipe.tokenizer) else None
    recipe = dataclasses.replace(recipe, eot="append" if has_eot else "none", tokenizer_sha256=sha256)
    return LoadedTokenizer(recipe, tokenizer, warnings)


def _list_warnings(recipe: Recipe, tokenizer: Tokenizer) -> Iterator[str]:
    if recipe.eot == "auto" and tokenizer.eot_id is None:
        yield (
            f"the tokenizer {shorten(recipe.tokenizer)} has no end-of-text token, so nothing separates one document "
            "from the next; choose another tokenizer, or pass --eot none to confirm"
        )
    if words := tokenizer.unused_words:
        named = ", ".join(one_line(repr(word)) for word in words[:NUM_NAMED])
        others = f" and {format_quantity(len(words) - NUM_NAMED, 'other')}" if len(words) > NUM_NAMED else ""
        yield (
            f"the tokenizer's added tokens {named}{others} are taken as control tokens, as they are in brackets; in "
            "text they are encoded as ordinary characters"
        )
    if tokenizer.round_trip_issue is not None:
        yield f"decoding does not return every text unchanged: {tokenizer.round_trip_issue}"
