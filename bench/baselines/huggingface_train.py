"""A baseline: Hugging Face's Trainer, which trains transformers' GPT-2 from random weights.

    python bench/baselines/huggingface_train.py FOLDER

FOLDER has a task and its tokens (see bench/lib/peers.py). The Trainer shuffles consecutive windows
of the text. Like examples/hf_trainer.py, it is given ids as labels, which the model shifts, so that
a window of T tokens has T - 1 targets.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from bench.lib.peers import (
    BETA2,
    GRAD_CLIP,
    LEARNING_RATE,
    MIN_LEARNING_RATE,
    WEIGHT_DECAY,
    Recorder,
    TokenWindows,
)


class LabeledWindows(Dataset[dict[str, Tensor]]):
    """The windows as the Trainer wants them: ids and labels, (T,) int64 each."""

    def __init__(self, windows: TokenWindows) -> None:
        self._windows = windows

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self._windows[index][:-1]
        return {"input_ids": ids, "labels": ids}


class Evaluation(TrainerCallback):
    """Starts the clock before the first step, and evaluates every `interval` steps."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._recorder.start()

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: GPT2LMHeadModel, **kwargs: Any) -> None:
        if state.global_step % self._recorder.task.interval == 0:
            model.eval()
            self._recorder.record(lambda ids: model(ids, use_cache=False).logits)
            model.train()


def main(folder: Path) -> None:
    recorder = Recorder(folder)
    task = recorder.task
    set_seed(task.seed)
    sizes = {name: getattr(task, name) for name in ("vocab_size", "n_layer", "n_head", "n_embd")}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config(**sizes, **dropout, n_positions=task.block_size))
    settings = TrainingArguments(
        str(folder / "out"),
        max_steps=task.steps,
        per_device_train_batch_size=task.batch_size,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": MIN_LEARNING_RATE},
        warmup_steps=task.warmup_steps,
        weight_decay=WEIGHT_DECAY,
        adam_beta2=BETA2,
        max_grad_norm=GRAD_CLIP,
        logging_steps=task.interval,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=task.seed,
    )
    windows = LabeledWindows(TokenWindows(recorder.tokens["train"], task.block_size))
    Trainer(model, settings, train_dataset=windows, callbacks=[Evaluation(recorder)]).train()
    recorder.write_result(model)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
