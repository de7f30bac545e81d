"""Numbers the distinct authors, cities, years or languages of documents, up to a limit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from preprocess.errors import FolioError

# All distinct values are in memory at once, for the manifest and stats.json. More values than this
# indicate a mistake in the settings, such as a column with the number of the document.
MAX_DISTINCT_VALUES = 1 << 18
MAX_CHARACTERS = 1 << 24  # of all distinct values together; emoji take 64 MB, and several copies are needed
NAMES = {"author": "authors", "city": "cities", "year": "years", "lang": "languages"}


class DistinctValues:
    """Numbers the distinct values of a field by first appearance."""

    def __init__(self, field: str) -> None:
        """`field`: author, city, year or lang."""
        self._field = field
        self._numbers: dict[str, int] = {}
        self._num_characters = 0

    def number(self, values: Iterable[str]) -> list[int]:
        """Return the number of each value, from 0. A new value gets the next number.

        Raises FolioError if there are more than MAX_DISTINCT_VALUES values, or if they have more
        than MAX_CHARACTERS in total.
        """
        numbers, num_before = self._numbers, len(self._numbers)
        result = [numbers.setdefault(value, len(numbers)) for value in values]
        self._num_characters += sum(map(len, islice(reversed(numbers), len(numbers) - num_before)))
        if len(numbers) > MAX_DISTINCT_VALUES or self._num_characters > MAX_CHARACTERS:
            limit = (
                f"more than {MAX_DISTINCT_VALUES:,} different {NAMES[self._field]}"
                if len(numbers) > MAX_DISTINCT_VALUES
                else f"{NAMES[self._field]} of more than {MAX_CHARACTERS:,} characters in total"
            )
            raise FolioError(
                f"the documents have {limit}, such as {next(reversed(numbers))[:40]!r}; "
                f"choose another --{self._field}-column or --name-pattern, or leave it out"
            )
        return result

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[str]:
        """Yield the values in the order of their numbers."""
        return iter(self._numbers)
