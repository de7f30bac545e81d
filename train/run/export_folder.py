"""Write a run's model as a folder for transformers, for `folio export` and `folio serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from preprocess.shards.files import write_durable
from preprocess.shards.manifest import Manifest
from train.run.checkpoint import MODEL_FILE, Checkpoint
from train.run.export_card import CARD_FILE, make_card
from train.run.export_model import config_files, export_tensors, find_chat_template, tokenizer_files, write_model
from train.run.run_dir import vocabulary_of


@dataclass(frozen=True)
class ExportedModel:
    """The model of a checkpoint in the form in which other programs read it."""

    manifest: Manifest  # of the run's vocabulary
    files: dict[str, bytes]  # of the tokenizer and the description of the model, by name
    tensors: dict[str, Tensor]  # the weights, by name

    @property
    def num_parameters(self) -> int:
        """The number of weights."""
        return sum(tensor.numel() for tensor in self.tensors.values())


def export_model(checkpoint: Checkpoint, dtype: str = "float32") -> ExportedModel:
    """Return the model of `checkpoint` with weights in `dtype`, one of DTYPES.

    Raises the errors of `tokenizer_files`, `config_files` and `export_tensors`.
    """
    info = checkpoint.info
    folder, manifest = vocabulary_of(checkpoint)
    files = tokenizer_files(folder, manifest, info.config)
    files |= config_files(info.config, manifest, info.vocab_size, dtype)
    return ExportedModel(manifest, files, export_tensors(checkpoint, info.config, dtype))


def write_folder(folder: Path, checkpoint: Checkpoint, exported: ExportedModel) -> None:
    """Write the files and the weights of `exported`, and the model card, to the empty `folder`.

    Raises FolioError if the run's metrics.jsonl is damaged.
    """
    card = make_card(
        checkpoint,
        exported.manifest,
        num_parameters=exported.num_parameters,
        chat_template=find_chat_template(exported.manifest),
    )
    for name, data in {**exported.files, CARD_FILE: card}.items():
        write_durable(folder / name, data)
    write_model(folder / MODEL_FILE, exported.tensors)
