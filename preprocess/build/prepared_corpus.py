"""The input of the phases that follow `prepare` and `dedup_and_split`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from preprocess.build.receipts import PrepareReceipt
from preprocess.build.split_assignment import SplitAssignment
from preprocess.build.work_dir import WorkDir
from preprocess.recipes.schema import Recipe
from preprocess.tokenizers.interface import Tokenizer
from preprocess.tokenizers.lost_characters import CharacterLoss


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus whose documents are encoded in the work directory and assigned to the splits."""

    recipe: Recipe
    work_dir: WorkDir
    receipts: list[PrepareReceipt]  # of each partition
    assignment: SplitAssignment
    tokenizer: Tokenizer
    control_tokens: Mapping[str, int] = field(default_factory=dict)  # that documents have already: token -> id

    @functools.cached_property
    def loss(self) -> CharacterLoss:
        """The characters that the tokenizer lost in all documents that were read, duplicates included."""
        loss = CharacterLoss()
        for partition in range(len(self.receipts)) if self.tokenizer.can_lose_characters else ():
            values = self.work_dir.read_values(partition)
            loss += CharacterLoss(values.num_characters, values.character_differences)
        return loss
