"""A baseline: nanochat's unmodified scripts/base_train.py with a clock around it.

    python bench/baselines/nanochat_train.py FOLDER NANOCHAT_DIR [--matrix-lr=0.5 ...]

FOLDER has a task and its tokens (see bench/lib/peers.py). The model is nanochat's, of the task's
depth, width and context, in fp32; its value embeddings add half a vocabulary of weights per layer.
Four functions are replaced: the tokenizer and the data loader, by consecutive windows of the text
in random order; `evaluate_bpb`, by the evaluation that all trainers have in common; and
`save_checkpoint`, which saves nothing. Further arguments are passed to base_train.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import os
import runpy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bench.lib.peers import Recorder, Task, TokenWindows

LoaderState = dict[str, int]


class Tokenizer:
    """The part of nanochat's tokenizer that training uses."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def get_vocab_size(self) -> int:
        return self._vocab_size


def read_batches(recorder: Recorder) -> Iterator[tuple[Tensor, Tensor, LoaderState]]:
    """Yield ids and targets, (B, T) int64 each, and the loader's state, as nanochat's loader does."""
    task = recorder.task
    generator = torch.Generator().manual_seed(task.seed)
    windows = TokenWindows(recorder.tokens["train"], task.block_size)
    loader = DataLoader(windows, batch_size=task.batch_size, shuffle=True, drop_last=True, generator=generator)
    epoch = 0
    while True:
        for rows in loader:  # (B, T + 1)
            yield rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), {"epoch": epoch, "pq_idx": 0, "rg_idx": 0}
        epoch += 1


class Evaluation:
    """Replaces `evaluate_bpb`, which is called before the first step and then every `interval` steps."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.model: nn.Module | None = None

    def __call__(self, model: nn.Module, *args: Any) -> float:
        if self.model is None:
            self.model = model
            self._recorder.start()
            return 0.0
        return self._recorder.record(model)


def list_arguments(task: Task) -> list[str]:
    """Return the arguments of base_train.py for the task."""
    return [
        "--device-type=cpu",
        f"--depth={task.n_layer}",
        f"--aspect-ratio={task.n_embd // task.n_layer}",
        f"--head-dim={task.n_embd // task.n_head}",
        f"--max-seq-len={task.block_size}",
        "--window-pattern=L",
        f"--device-batch-size={task.batch_size}",
        f"--total-batch-size={task.batch_size * task.block_size}",
        f"--num-iterations={task.steps}",
        f"--warmup-steps={task.warmup_steps}",
        f"--eval-every={task.interval}",
        "--core-metric-every=-1",
        "--sample-every=-1",
    ]


def main(folder: Path, nanochat: Path, arguments: list[str]) -> None:
    recorder = Recorder(folder)
    os.environ |= {"NANOCHAT_BASE_DIR": str(folder / "out"), "NANOCHAT_DTYPE": "float32"}
    os.chdir(nanochat)
    sys.path[0] = str(nanochat)
    from nanochat import checkpoint_manager, dataloader, loss_eval, tokenizer

    evaluation = Evaluation(recorder)
    tokenizer.get_tokenizer = lambda: Tokenizer(recorder.task.vocab_size)
    tokenizer.get_token_bytes = lambda device: None  # only `evaluate_bpb` reads them
    dataloader.tokenizing_distributed_data_loader_bos_bestfit = lambda *args, **kwargs: None
    dataloader.tokenizing_distributed_data_loader_with_state_bos_bestfit = lambda *args, **kwargs: read_batches(
        recorder
    )
    loss_eval.evaluate_bpb = evaluation
    checkpoint_manager.save_checkpoint = lambda *args, **kwargs: None
    sys.argv = ["base_train.py", *list_arguments(recorder.task), *arguments]
    runpy.run_path("scripts/base_train.py", run_name="__main__")
    assert evaluation.model is not None
    recorder.write_result(evaluation.model)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute(), sys.argv[3:])
