"""Training straight from text, without shards: `data = "stream:RECIPE"`.

A stream has no random access, so it is read in order, and where it stands is kept in the checkpoint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from preprocess.errors import FolioError, MisuseError, shown
from preprocess.shards.format import find_build
from train.config import Config
from train.core.cli import warn
from train.core.distributed import World
from train.data.batches import Batch, Data, ValidationData, ValidationWindows, open_data, to_device
from train.data.builds import WEIGHTED, Builds, open_builds, tokenizer_sha256

if TYPE_CHECKING:
    from preprocess.stream import StreamCorpus, TokenStream

PREFIX = "stream:"


class StreamedText:
    """What a run reads where `data` names a recipe. Has what Builds has, but shards."""

    def __init__(self, setting: str, tell: Callable[[str], None]) -> None:
        """`setting` without its prefix: a built-in corpus, or the path of a recipe. `tell`: as open_corpus has it, but that what is
        told of the opening waits in `notes`, for a run that has something left to do. Raises FolioError.
        """
        try:
            from preprocess.stream import open_corpus
        except ImportError as e:
            raise FolioError(
                f"a stream needs the libraries of preprocess, and {e.name} is not installed; pip install folio-lm"
            ) from e
        self.notes: list[str] = []
        self._tell: Callable[[str], None] = self.notes.append
        self._corpus: StreamCorpus = open_corpus(setting, tell=lambda line: self._tell(line))
        self._tell = tell
        self.manifest: dict[str, Any] = self._corpus.manifest()
        self.name = f"{PREFIX}{self._corpus.name}"
        self.build_id = self._corpus.sha256
        self.vocab_size = self._corpus.vocab_size
        self.tokenizer_sha256 = tokenizer_sha256(self.manifest)

    def save_vocabulary(self, folder: Path) -> None:
        """Write the manifest and the tokenizer, all that text needs."""
        self._corpus.save_vocabulary(folder)

    def difference(self, before: dict[str, Any]) -> str:
        """The first thing that differs from the stream whose manifest was `before`: a setting of the recipe, or a file."""
        then, now = before["recipe"], self.manifest["recipe"]
        for key in sorted(then.keys() | now.keys()):
            if then.get(key) != now.get(key):
                return f"{key} {shown(repr(then.get(key)))} → {shown(repr(now.get(key)))}"
        sizes = [
            {str(file.get("name")): file.get("bytes") for file in manifest["sources"] if isinstance(file, dict)}
            for manifest in (before, self.manifest)
        ]
        for name in sorted(sizes[0].keys() | sizes[1].keys()):
            if sizes[0].get(name) != sizes[1].get(name):
                said = [
                    f"{size[name]:,} bytes" if isinstance(size.get(name), int) else "no such file" for size in sizes
                ]
                return f"{shown(name)} {said[0]} → {said[1]}"
        return "its recipe or its files changed"

    def describe(self) -> str:
        return f"{self.name}: read as it comes, up to {self.vocab_size:,} ids"

    def open(self, config: Config, *, device: torch.device, world: World) -> Data:
        """Raises MisuseError for settings that a stream cannot have, FolioError where there is no validation text."""
        if config.data_order != "random":
            raise MisuseError(
                f"data_order is {config.data_order!r}, and a stream is read in its own order; set data_order = 'random', or train on a build"
            )
        if config.mask_documents:
            raise MisuseError(
                "mask_documents is True, and a stream's windows do not tell documents apart; set it to False, or train on a build"
            )
        return Data(
            StreamedTraining(self._corpus, config, device=device, world=world),
            self.open_validation(config, device=device),
        )

    def open_validation(self, config: Config, *, device: torch.device) -> StreamedValidation:
        """Where `config` sets no eval_tokens, this reads the text to its end. Raises FolioError where there is no validation text."""
        return StreamedValidation(self._corpus, config, device=device)


class StreamedTraining:
    """The line of training samples of this process, in the order of its stream."""

    num_tokens: int | None = None  # nobody knows before the end

    def __init__(self, corpus: StreamCorpus, config: Config, *, device: torch.device, world: World) -> None:
        from preprocess.stream import TokenStream

        self._stream: TokenStream = TokenStream(
            corpus, block_size=config.block_size, seed=config.seed, stream_buffer=config.stream_buffer,
            rank=world.rank, world_size=world.size, epochs=None,
        )  # fmt: skip
        self._device = device
        # Blocks that were read ahead, each with the state of the stream in front of it.
        self._ahead: deque[tuple[dict[str, Any], np.ndarray]] = deque()
        self._last: tuple[int, dict[str, Any], Batch] | None = (
            None  # first sample, state in front of it, and the batch given last
        )

    def trial_batch(self, count: int) -> Batch:
        """The next `count` windows, which stay the next ones."""
        while len(self._ahead) < count:
            state = self._stream.state_dict()
            self._ahead.append((state, next(self._stream)))
        return self._to_batch([block for _, block in list(self._ahead)[:count]])

    def batch(self, first: int, count: int) -> Batch:
        """The next `count` windows; asked again for samples from the same `first` on, the same."""
        if self._last is None or self._last[0] != first:
            batch = self.trial_batch(count)
            self._last = first, self._ahead[0][0], batch
            for _ in range(count):
                self._ahead.popleft()
        return self._last[2]

    def state_at(self, first: int) -> dict[str, Any] | None:
        """Where the stream stands in front of the samples from `first` on: those given last, or those to come."""
        if self._last is not None and self._last[0] == first:
            return self._last[1]
        return self._ahead[0][0] if self._ahead else self._stream.state_dict()

    def go_to(self, state: dict[str, Any] | None) -> None:
        """Stand where `state_at` told. Raises MisuseError for a state of another stream."""
        if state is None:
            raise MisuseError("the checkpoint holds no place in a stream; train on the build that it was trained on")
        self._stream.load_state_dict(state)
        self._ahead.clear()
        self._last = None

    def _to_batch(self, blocks: list[np.ndarray]) -> Batch:
        windows = to_device(np.stack(blocks), self._device)
        return windows[:, :-1], windows[:, 1:], None


class StreamedValidation(ValidationWindows):
    """The fixed blocks that every evaluation of a run reads, in order."""

    def __init__(self, corpus: StreamCorpus, config: Config, *, device: torch.device) -> None:
        from preprocess.stream import validation_blocks

        found = validation_blocks(corpus, block_size=config.block_size, eval_tokens=config.eval_tokens)
        self._blocks, self._device = found.blocks, device
        self.source, self.names = np.zeros(len(found.blocks), np.int64), [corpus.name]
        self.shares: tuple[float, ...] = (1.0,)
        self.splits = [{"tokens": found.num_tokens, "text_bytes": found.num_text_bytes}]

    @property
    def num_windows(self) -> int:
        return len(self._blocks)

    def batch(self, numbers: np.ndarray) -> Batch:
        """Windows number `numbers`, (B,)."""
        windows = to_device(self._blocks[numbers], self._device)
        return windows[:, :-1], windows[:, 1:], None


DataSource = Builds | StreamedText


def open_data_source(setting: str, *, world: World) -> DataSource:
    """What the setting `data` names: builds, or after `stream:` a recipe. Raises FolioError, MisuseError."""
    parts = setting.split(",")
    if not any(part.strip().startswith(PREFIX) for part in parts):
        return open_builds(setting)
    recipe = setting.removeprefix(PREFIX)
    if recipe == setting or (not Path(recipe).is_file() and (len(parts) > 1 or WEIGHTED.fullmatch(recipe))):
        raise MisuseError(
            f"data is {setting!r}, and a stream has no weight and is not mixed; name one recipe, or build each to mix the builds"
        )
    # All processes read all of the text, and would say the same of it.
    try:
        return StreamedText(recipe, warn if world.is_main else lambda line: None)
    except MisuseError as e:
        hint = f"; {recipe} is a build, which is read without {PREFIX!r}" if _is_build(recipe) else ""
        raise MisuseError(f"{e}{hint}") from e


def _is_build(name: str) -> bool:
    try:
        return bool(find_build(name))
    except MisuseError:
        return False


def open_data_splits(source: DataSource, config: Config, *, device: torch.device, world: World) -> Data:
    """The samples of a run. Raises FolioError where there is not one."""
    if isinstance(source, StreamedText):
        return source.open(config, device=device, world=world)
    return open_data(source, config, device=device)


def open_validation(source: DataSource, config: Config, *, device: torch.device) -> ValidationWindows:
    """The windows that an evaluation reads. Raises FolioError where there is not one."""
    if isinstance(source, StreamedText):
        return source.open_validation(config, device=device)
    return ValidationData(source, config, device=device)
