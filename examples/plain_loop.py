"""Train a tiny model on a build, in a plain loop: `python examples/plain_loop.py BUILD`."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

from preprocess.errors import FolioError
from preprocess.shards.format import Build
from preprocess.shards.torch_dataset import ShuffledWindows, make_loader

WIDTH, BLOCK_SIZE, STEPS = 64, 64, 100


class TinyModel(nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.embed, self.position = nn.Embedding(vocab_size, WIDTH), nn.Embedding(BLOCK_SIZE, WIDTH)
        self.block = nn.TransformerEncoderLayer(WIDTH, nhead=4, dim_feedforward=4 * WIDTH, dropout=0, batch_first=True)
        self.head = nn.Linear(WIDTH, vocab_size)

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.block(self.embed(x) + self.position.weight[: x.shape[1]], src_mask=mask, is_causal=True))


def train(where):
    build = Build(where)
    model = TinyModel(build.vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    windows = ShuffledWindows(build, block_size=BLOCK_SIZE, order="random", num_samples=32 * STEPS)
    for step, (x, y) in enumerate(make_loader(windows)):  # (32, BLOCK_SIZE) int64 each
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == STEPS - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", help="name or folder of the build")
    try:
        train(parser.parse_args().build)
    except FolioError as e:
        raise SystemExit(f"error: {e}") from e
