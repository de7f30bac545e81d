"""Write a run's model as a folder for transformers, for `folio export` and `folio serve`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from preprocess.shards.files import write_durable
from preprocess.shards.manifest import Manifest
from train.run.checkpoint import MODEL_FILE, Checkpoint
from train.run.export_card import CARD_FILE, make_card
from train.run.export_model import find_chat_template, write_model


def write_folder(
    folder: Path, checkpoint: Checkpoint, manifest: Manifest, files: Mapping[str, bytes], tensors: dict[str, Tensor]
) -> None:
    """Write the weights `tensors`, the other `files` by name, and the model card to the empty `folder`.

    `manifest` is that of the run's vocabulary. Raises FolioError if the run's metrics.jsonl is damaged.
    """
    card = make_card(
        checkpoint,
        manifest,
        num_parameters=sum(tensor.numel() for tensor in tensors.values()),
        chat_template=find_chat_template(manifest),
    )
    for name, data in {**files, CARD_FILE: card}.items():
        write_durable(folder / name, data)
    write_model(folder / MODEL_FILE, tensors)
