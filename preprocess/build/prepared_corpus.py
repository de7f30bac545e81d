"""The input of the phases that follow `prepare` and `dedup_and_split`."""

from __future__ import annotations

from dataclasses import dataclass

from preprocess.build.receipts import PrepareReceipt
from preprocess.build.split_assignment import SplitAssignment
from preprocess.build.work_dir import WorkDir
from preprocess.recipes.schema import Recipe
from preprocess.tokenizers.interface import Tokenizer


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus whose documents are encoded in the work directory and assigned to the splits."""

    recipe: Recipe
    work_dir: WorkDir
    receipts: list[PrepareReceipt]  # of each partition
    assignment: SplitAssignment
    tokenizer: Tokenizer
