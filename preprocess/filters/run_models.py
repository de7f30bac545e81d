"""Load the models of runs. This is the only module of `preprocess` that imports `train`.

A filter that applies a trained model needs the architectures and checkpoints of `train`. They are imported
inside the functions here, when a recipe has such a filter, so that every other command neither needs nor
loads PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from preprocess.errors import MisuseError


class DocumentScorer(Protocol):
    """Measures how well a model predicts a document."""

    def measure(self, text: str) -> float | None:
        """Return the bits per UTF-8 byte of `text`, or None if the tokenizer cannot encode it."""


def find_model(run: str) -> tuple[Path, str]:
    """Return the newest checkpoint of `run`, or the checkpoint `run` itself, and the SHA-256 of what it computes.

    Raises MisuseError if there is none or if PyTorch is not installed, and FolioError if it is damaged.
    """
    try:
        from train.evaluation.document_bits import find_run_model
    except ImportError as e:
        raise MisuseError(_explain(e)) from e
    return find_run_model(Path(run))


def load_scorer(run: str, sha256: str) -> DocumentScorer:
    """Return the scorer of a checkpoint. Raises the errors of `find_model`, and FolioError for another `sha256`."""
    try:
        from train.evaluation.document_bits import load_document_scorer
    except ImportError as e:
        raise MisuseError(_explain(e)) from e
    return load_document_scorer(Path(run), sha256)


def _explain(error: ImportError) -> str:
    return (
        f"a filter by a model needs PyTorch and the package train, and {str(error.name)!r:.80} cannot be imported; "
        "install them with `pip install folio-lm`, or leave the filter out"
    )
