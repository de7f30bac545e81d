"""A tiny trainer with the interface of nanoGPT's train.py that bench/ uses.

It has the same settings, seed, evaluations, checkpoints and global variables. If NANOGPT_DIR names
no checkout of nanoGPT, test_bench_training.py copies this file to a folder as train.py and runs the
benches with it.
"""

import ast
import contextlib
import os
import sys

import numpy as np
import torch
from torch import nn

# First, because the folder of this file has a train.py, which would hide the package `train`.
sys.path.insert(0, os.environ["FOLIO_ROOT"])
from train.config import Config
from train.model.gpt2 import GPT2

settings = {
    "n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8, "batch_size": 2, "dropout": 0.0, "max_iters": 8,
    "eval_interval": 4, "eval_only": False, "compile": False, "device": "cpu", "dataset": "", "out_dir": "",
}  # fmt: skip
for argument in sys.argv[1:]:
    key, _, text = argument.removeprefix("--").partition("=")
    if key in settings:
        settings[key] = text if isinstance(settings[key], str) else ast.literal_eval(text)
globals().update(settings)
block_size, batch_size = settings["block_size"], settings["batch_size"]
tokens_per_iter = batch_size * block_size
torch.manual_seed(1337)
tokens = np.memmap(os.path.join(settings["dataset"], "train.bin"), dtype=np.uint16, mode="r")


def get_batch(split):
    starts = torch.randint(len(tokens) - block_size, (batch_size,)).tolist()
    windows = torch.from_numpy(np.stack([tokens[s : s + block_size + 1] for s in starts]).astype(np.int64))
    return windows[:, :-1], windows[:, 1:]  # (batch_size, block_size) each


class Model(nn.Module):
    """A GPT-2 whose weights are named transformer.…, and which returns logits and the mean loss, as nanoGPT's does."""

    def __init__(self):
        super().__init__()
        sizes = {key: settings[key] for key in ("n_layer", "n_head", "n_embd", "block_size")}
        self.transformer = GPT2(Config(data="x", out_dir="y", **sizes), int(tokens.max()) + 1)

    def forward(self, ids, targets):
        return self.transformer.logits(self.transformer.features(ids)), self.transformer(ids, targets)[0]


ctx, grad_clip, scaler = contextlib.nullcontext(), 1.0, torch.amp.GradScaler("cpu", enabled=False)
model = Model()
raw_model = torch.compile(model, backend="eager") if settings["compile"] else model
optimizer = torch.optim.AdamW(raw_model.parameters(), lr=1e-2)
for iter_num in range(settings["max_iters"] + 1):
    if iter_num % settings["eval_interval"] == 0:
        raw_model.eval()
        raw_model(*get_batch("val"))
        raw_model.train()
        if iter_num > 0:
            model_args = {key: settings[key] for key in ("n_layer", "n_head", "n_embd", "block_size", "dropout")}
            model_args["vocab_size"] = raw_model.transformer.padded_vocab_size
            torch.save(
                {"model": raw_model.state_dict(), "iter_num": iter_num, "model_args": model_args},
                os.path.join(settings["out_dir"], "ckpt.pt"),
            )
    if settings["eval_only"]:
        break
    raw_model(*get_batch("train"))[1].backward()
    optimizer.step()
    optimizer.zero_grad()
