"""A baseline: litgpt's pretraining, `litgpt.pretrain.setup`, with a clock around it.

    python bench/baselines/litgpt_train.py FOLDER

FOLDER has a task and its tokens (see bench/lib/peers.py). The model is a GPT-NeoX of the task's
shape, with rotary positions and an untied head, since litgpt has no GPT-2. The data are a module
of consecutive windows of the text, which its DataLoader shuffles. Two functions of litgpt are
replaced: `validate`, by the evaluation that all trainers have in common, and `save_checkpoint`,
which saves nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from typing import Any

import torch
from litgpt import pretrain
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.data import DataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bench.lib.peers import (
    BETA2,
    GRAD_CLIP,
    LEARNING_RATE,
    MIN_LEARNING_RATE,
    WEIGHT_DECAY,
    Recorder,
    TokenWindows,
)


class Windows(DataModule):
    """The windows of the task, in litgpt's interface: rows of T + 1 tokens."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
        pass  # both sizes are the task's

    def _loader(self, split: str, *, shuffle: bool) -> DataLoader[Tensor]:
        task = self._recorder.task
        windows = TokenWindows(self._recorder.tokens[split], task.block_size)
        return DataLoader(windows, batch_size=task.batch_size, shuffle=shuffle, drop_last=True)

    def train_dataloader(self) -> DataLoader[Tensor]:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return self._loader("val", shuffle=False)


class Validation:
    """Replaces litgpt's `validate`, which is called before the first step, and then every `interval` steps."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.model: nn.Module | None = None

    def __call__(self, fabric: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        if self.model is None:
            self.model = model
            self._recorder.start()
            return torch.zeros(())
        model.eval()
        loss = self._recorder.record(model)
        model.train()
        return torch.tensor(loss)


def main(folder: Path) -> None:
    recorder = Recorder(folder)
    task = recorder.task
    config = Config(
        name="bench",
        n_layer=task.n_layer,
        n_head=task.n_head,
        n_embd=task.n_embd,
        block_size=task.block_size,
        vocab_size=task.vocab_size,
        padded_vocab_size=task.vocab_size,
        parallel_residual=False,
    )
    validation = Validation(recorder)
    pretrain.validate = validation
    pretrain.save_checkpoint = lambda *args: None
    adamw = {"lr": LEARNING_RATE, "betas": (0.9, BETA2), "weight_decay": WEIGHT_DECAY}
    pretrain.setup(
        "bench",
        model_config=config,
        out_dir=folder / "out",
        precision="32-true",
        data=Windows(recorder),
        train=TrainArgs(
            save_interval=None,
            log_interval=task.interval,
            global_batch_size=task.batch_size,
            micro_batch_size=task.batch_size,
            max_tokens=task.steps * task.batch_size * task.block_size,
            max_norm=GRAD_CLIP,
            min_lr=MIN_LEARNING_RATE,
            lr_warmup_steps=task.warmup_steps,
        ),
        eval=EvalArgs(interval=task.interval, final_validation=False),
        optimizer={"class_path": "torch.optim.AdamW", "init_args": adamw},
        devices=1,
        logger_name="csv",
        seed=task.seed,
    )
    assert validation.model is not None
    recorder.write_result(validation.model)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
