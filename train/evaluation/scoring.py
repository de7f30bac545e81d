"""The log-probability that a model gives to a continuation of a context.

A benchmark asks for the log-probability of thousands of short continuations, often of several
continuations of the same context. Windows are therefore sorted by length and padded at their end,
which changes no earlier position of a causal model; windows with the same input are computed once; and
logits, which take the most memory, are computed only at the positions of the continuation.

Shapes: B windows, T tokens of the longest of them, C width, K scored tokens, V padded vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from preprocess.errors import FolioError
from preprocess.shards.manifest import Manifest
from train.core.memory import is_out_of_memory
from train.model.base import LanguageModel, evaluation_mode

MAX_LOGITS = 1 << 24  # computed at once: 64 MB in float32

Request = tuple[list[int], list[int]]  # the ids of a context, at least one, and those of its continuation


@dataclass(frozen=True)
class Window:
    """Ids for one row of a forward pass, and the ids that are to follow the last of them."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]  # the last one follows the last input
    request: int  # the number of the request


@dataclass
class Score:
    """The sum of the log-probabilities of a continuation's tokens, in nats."""

    log_probability: float = 0.0
    is_greedy: bool = True  # whether each token is the most likely one after those before it


@dataclass(frozen=True, kw_only=True)
class ScoringSettings:
    """How forward passes are made."""

    batch_size: int  # windows of block_size tokens; of shorter ones, a forward pass has more
    autocast: AbstractContextManager[object]
    report: Callable[[int, int], None] = lambda num_done, num_windows: None  # called after each forward pass


@dataclass(frozen=True, kw_only=True)
class DocumentStart:
    """The control tokens that a text begins with, as a document does in training."""

    ids: list[int]  # before every text
    before: list[int]  # what predicts the first token of a text without a context, if `ids` is empty


def find_document_start(manifest: Manifest, *, mask_documents: bool) -> DocumentStart:
    """Return what comes before the text of a document.

    That is the end-of-text token of the document before it, and the begin-of-text token if the recipe has
    `bos`. With `mask_documents`, no token attends to another document, so only the first token of a document
    is predicted from the end-of-text token. Authors, cities and years are left out: a task has none.
    """
    recipe = manifest.recipe
    bos = [manifest.bos_id] if recipe.get("bos") and manifest.bos_id is not None else []
    eot = [manifest.eot_id] if recipe.get("eot") != "none" and manifest.eot_id is not None else []
    return DocumentStart(ids=bos if mask_documents else eot + bos, before=bos or eot)


def cut_windows(context: list[int], continuation: list[int], *, block_size: int) -> Iterator[tuple[list[int], int]]:
    """Yield the inputs of each window for a continuation, and how many ids at its end are predicted.

    Each id of the continuation is predicted once, by at most `block_size` ids before it: as many as fit.
    Windows predict `block_size` ids each, only the last one may predict fewer. `context` has at least
    one id.
    """
    ids = context + continuation
    for begin in range(len(context), len(ids), block_size):
        end = min(begin + block_size, len(ids))
        yield ids[max(0, end - 1 - block_size) : end - 1], end - begin


@torch.no_grad()
def score(model: LanguageModel, requests: Sequence[Request], settings: ScoringSettings) -> list[Score]:
    """Return the score of the continuation of each request, in the order of `requests`.

    An empty continuation has the log-probability 0. Raises FolioError if the model's output is not
    finite, and an out-of-memory error if a single window does not fit the memory.
    """
    windows_of: dict[tuple[int, ...], list[Window]] = {}
    for number, (context, continuation) in enumerate(requests):
        position = 0
        for inputs, count in cut_windows(context, continuation, block_size=model.block_size):
            window = Window(tuple(inputs), tuple(continuation[position : position + count]), number)
            windows_of.setdefault(window.inputs, []).append(window)
            position += count
    waiting = sorted(windows_of, key=len, reverse=True)  # the longest first: memory runs out at once or not at all
    scores = [Score() for _ in requests]
    max_tokens, num_done = settings.batch_size * model.block_size, 0
    with evaluation_mode(model), settings.autocast:
        while num_done < len(waiting):
            rows = waiting[num_done : num_done + max(1, max_tokens // len(waiting[num_done]))]
            try:
                _score_rows(model, rows, [windows_of[inputs] for inputs in rows], scores)
            except (MemoryError, RuntimeError) as e:
                if not is_out_of_memory(e) or len(rows) == 1:
                    raise
                max_tokens = len(rows) // 2 * len(rows[0])
                continue
            num_done += len(rows)
            settings.report(num_done, len(waiting))
    return scores


def _score_rows(
    model: LanguageModel, rows: Sequence[tuple[int, ...]], windows: Sequence[list[Window]], scores: list[Score]
) -> None:
    """Add the log-probabilities of windows to `scores`. `windows` has those of each of `rows`."""
    device = model.head_weight.device
    ids = torch.zeros(len(rows), len(rows[0]), dtype=torch.int64)  # (B, T), padded with id 0
    for row, inputs in zip(ids, rows, strict=True):
        row[: len(inputs)] = torch.tensor(inputs)
    features = model.features(ids.to(device))  # (B, T, C)
    cells = [
        (row, len(rows[row]) - len(window.targets) + offset, target, window.request)
        for row, row_windows in enumerate(windows)
        for window in row_windows
        for offset, target in enumerate(window.targets)
    ]
    size = max(1, MAX_LOGITS // model.padded_vocab_size)
    parts = [_score_cells(model, features, cells[first : first + size]) for first in range(0, len(cells), size)]
    values, are_likeliest = (torch.cat(column).tolist() for column in zip(*parts, strict=True))
    for (*_, request), value, is_likeliest in zip(cells, values, are_likeliest, strict=True):
        scores[request].log_probability += value
        scores[request].is_greedy &= is_likeliest


def _score_cells(
    model: LanguageModel, features: Tensor, cells: Sequence[tuple[int, int, int, int]]
) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each cell's target, (K,) float64, and whether it is the most likely id.

    A cell has a row and a position in `features`, (B, T, C), and the id that is to follow.
    """
    row, position, target, _ = torch.tensor(cells, device=features.device).unbind(dim=1)
    log_probabilities = model.logits(features[row, position]).log_softmax(dim=-1)  # (K, V) float32
    values = log_probabilities.gather(1, target[:, None])[:, 0]  # (K,)
    if not values.isfinite().all():
        raise FolioError(
            "the model's output is not finite: its weights are damaged or its training diverged; use another checkpoint"
        )
    return values.cpu().double(), (log_probabilities.argmax(dim=-1) == target).cpu()
