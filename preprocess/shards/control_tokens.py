"""The ids of the control tokens that mark the author, city and year of a document.

The vocabulary of a tokenizer does not contain these tokens, so text can never encode to one. Their
ids come after those of the tokenizer, in the order in which the tokens first appear. Builds and
streams both use this module, so a stream over the files of a build has the vocabulary of the build.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from preprocess.errors import FolioError
from preprocess.shards.format import CONTROL_FIELDS, format_control_token

MAX_CONTROL_TOKENS = 1 << 18  # five times the vocabulary of GPT-2; more are a mistake in the settings


class ControlTokenIds:
    """Assigns ids to control tokens by first appearance."""

    def __init__(
        self, vocab_size: int, special_tokens: Mapping[str, int], chat_tokens: Mapping[str, int] | None = None
    ) -> None:
        """`vocab_size`, `special_tokens`: of the tokenizer, without control tokens.

        `chat_tokens`: the control tokens of the chat template. Those with new ids, from `vocab_size`
        on, come before the tokens of authors, cities and years.
        """
        # e.g. "<author_Anna_Akimova>" -> id
        self.by_token: dict[str, int] = {t: i for t, i in (chat_tokens or {}).items() if i >= vocab_size}
        self._by_value: dict[str, dict[str | int, int]] = {field: {} for field in CONTROL_FIELDS}
        self._in_nfc: set[str] = set()  # the tokens in the Unicode normal form NFC, to compare what a person reads
        self._vocab_size, self._special_tokens = vocab_size, special_tokens

    @property
    def has_values(self) -> bool:
        """Whether an author, a city or a year has an id."""
        return any(self._by_value.values())

    def assign(self, field: str, value: str | int) -> int:
        """Return the id of `value` of `field`, one of CONTROL_FIELDS. A new value gets the next id.

        Raises FolioError if another value or a special token has the same text as the new token:
        white space becomes `_`, so `Ann Lee` and `Ann_Lee` cannot both be authors. Also raises
        FolioError if there are more than MAX_CONTROL_TOKENS tokens.
        """
        ids = self._by_value[field]
        if value not in ids:
            token = format_control_token(field, value)
            is_equal = token in self.by_token or token in self._special_tokens
            if is_equal or (in_nfc := unicodedata.normalize("NFC", token)) in self._in_nfc:
                forms = "" if is_equal else " in two Unicode forms (file names of macOS are in NFD)"
                raise FolioError(
                    f"two control tokens would be written {token!r:.80}{forms}; rename one of the two in the input"
                )
            if len(self.by_token) == MAX_CONTROL_TOKENS:
                raise FolioError(
                    f"there are more than {MAX_CONTROL_TOKENS:,} different authors, cities and years, and each needs "
                    f"a token of the vocabulary ({field} {str(value)[:40]!r} is one too many); choose another column, "
                    "or pass --no-authors"
                )
            ids[value] = self.by_token[token] = self._vocab_size + len(self.by_token)
            self._in_nfc.add(in_nfc)
        return ids[value]

    def find(self, field: str, value: str | int) -> int:
        """Return the id of `value` of `field`, or -1 if it has none."""
        return self._by_value[field].get(value, -1)
