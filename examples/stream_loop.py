"""Train a tiny model directly on text that two DataLoader workers read and encode.

Usage: `python examples/stream_loop.py RECIPE`.
"""

import argparse
import itertools

import torch
from plain_loop import BLOCK_SIZE, STEPS, TinyModel
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from preprocess.errors import FolioError
from preprocess.stream import TokenStream, open_corpus


class Blocks(IterableDataset):
    """A dataset of inputs and targets, (T,) int64 each. Every worker opens a stream of its own share.

    torchdata's StatefulDataLoader saves and resumes it with `state_dict` and `load_state_dict`.
    """

    def __init__(self, recipe, **settings):
        self.recipe, self.settings, self.state, self.stream = recipe, settings, None, None

    def __iter__(self):
        info = get_worker_info()
        share = {"worker": info.id, "num_workers": info.num_workers} if info else {}
        self.stream = TokenStream(self.recipe, **share, **self.settings)
        if self.state is not None:
            self.stream.load_state_dict(self.state)
            self.state = None
        for block in self.stream:
            tokens = torch.from_numpy(block.astype("int64"))
            yield tokens[:-1], tokens[1:]

    def state_dict(self):
        return self.state if self.stream is None else self.stream.state_dict()

    def load_state_dict(self, state):
        self.state, self.stream = state, None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", help="path of a TOML file, or name of a built-in corpus")
    recipe = parser.parse_args().recipe
    try:
        model = TinyModel(open_corpus(recipe).vocab_size)
    except FolioError as e:
        raise SystemExit(f"error: {e}") from e
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    blocks = Blocks(recipe, block_size=BLOCK_SIZE, stream_buffer=100, epochs=None)
    for step, (x, y) in enumerate(itertools.islice(DataLoader(blocks, batch_size=32, num_workers=2), STEPS)):
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == STEPS - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
