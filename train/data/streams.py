"""Training directly on text, without shards: `data = "stream:RECIPE"`.

A stream has no random access: it is read in order, and a checkpoint stores the position in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from preprocess.errors import FolioError, MisuseError, shorten
from preprocess.shards.format import find_build
from preprocess.shards.manifest import Manifest
from train.config import STREAM_PREFIX, URL_MARK, Config
from train.core.cli import warn
from train.core.distributed import World
from train.data.batches import (
    Data,
    ResumeState,
    TextSize,
    TrainingSamples,
    ValidationData,
    ValidationWindows,
    open_data,
)
from train.data.builds import NAME_AND_WEIGHT, Builds, open_builds, tokenizer_sha256
from train.data.mixed_split import Batch, to_device

if TYPE_CHECKING:
    from preprocess.stream import StreamCorpus, TokenStream


class StreamedText:
    """The text that a run reads if `data` names a recipe.

    For the rest of the trainer it has the same attributes and methods as `Builds`.
    """

    def __init__(self, recipe: str, log: Callable[[str], None]) -> None:
        """Open the corpus of `recipe`, a built-in corpus or the path of a recipe file.

        Warnings about opening it are collected in `warnings`, because they are printed only if the
        run has work to do. Later warnings go to `log`. Raises MisuseError if there is no such
        recipe, and FolioError if its files or the libraries that it needs are missing or damaged.
        """
        try:
            from preprocess.stream import open_corpus
        except ImportError as e:
            raise FolioError(
                f"a stream needs the libraries of preprocess, and {e.name} is not installed; pip install folio-lm"
            ) from e
        self.warnings: list[str] = []
        self._log: Callable[[str], None] = self.warnings.append
        self._corpus: StreamCorpus = open_corpus(recipe, log=lambda line: self._log(line))
        self._log = log
        self.tokenizer: Any = self._corpus.tokenizer
        self.manifest: Manifest = self._corpus.manifest()
        self.name = f"{STREAM_PREFIX}{self._corpus.name}"
        self.build_id, self.times_sha256 = self._corpus.sha256, self._corpus.times_sha256
        self.vocab_size = self._corpus.vocab_size
        self.tokenizer_sha256 = tokenizer_sha256(self.manifest)

    def save_vocabulary(self, folder: Path) -> None:
        """Write the manifest and the tokenizer, which turn ids into text, to `folder`."""
        self._corpus.save_vocabulary(folder)

    def difference(self, earlier: Manifest) -> str:
        """Return the first difference from the stream with the manifest `earlier`, in words.

        It is a setting of the recipe or the size of a file.
        """
        old, new = earlier.recipe, self.manifest.recipe
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return f"{key} {shorten(repr(old.get(key)))} → {shorten(repr(new.get(key)))}"
        old_sizes, new_sizes = (
            {str(file.get("name")): file.get("bytes") for file in manifest.sources if isinstance(file, dict)}
            for manifest in (earlier, self.manifest)
        )
        for name in sorted(old_sizes.keys() | new_sizes.keys()):
            if old_sizes.get(name) != new_sizes.get(name):
                before, after = (_format_size(sizes.get(name)) for sizes in (old_sizes, new_sizes))
                return f"{shorten(name)} {before} → {after}"
        return "its recipe or its files changed"

    def describe(self) -> str:
        """Return the line that the preflight prints."""
        return f"{self.name}: read while training, up to {self.vocab_size:,} ids"

    def open(self, config: Config, *, device: torch.device, world: World) -> Data:
        """Return training samples and validation windows.

        Raises MisuseError for settings that a stream does not support, and FolioError if there is
        no validation text.
        """
        if config.data_order != "random":
            raise MisuseError(
                f"data_order is {config.data_order!r}, but a stream is read in its order; set data_order = "
                "'random', or train on a build"
            )
        if config.mask_documents:
            raise MisuseError(
                "mask_documents is True, but the windows of a stream do not mark documents; set it to False, "
                "or train on a build"
            )
        train = StreamedTraining(self._corpus, config, device=device, world=world)
        return Data(train, self.open_validation(config, device=device))

    def open_validation(self, config: Config, *, device: torch.device) -> StreamedValidation:
        """Return the validation windows. Without eval_tokens, the whole corpus is read to find them.

        Raises FolioError if there is no validation text.
        """
        return StreamedValidation(self._corpus, config, device=device)


def _format_size(size_bytes: object) -> str:
    return f"{size_bytes:,} bytes" if isinstance(size_bytes, int) else "no such file"


class StreamedTraining(TrainingSamples):
    """The training samples of this process, in the order of its stream."""

    num_tokens: int | None = None  # not known before all text is read

    def __init__(self, corpus: StreamCorpus, config: Config, *, device: torch.device, world: World) -> None:
        from preprocess.stream import TokenStream

        self._stream: TokenStream = TokenStream(
            corpus, block_size=config.block_size, seed=config.seed, stream_buffer=config.stream_buffer,
            rank=world.rank, world_size=world.size, epochs=None,
        )  # fmt: skip
        self._device = device
        # Blocks that were read ahead, each with the state of the stream before it.
        self._ahead: deque[tuple[ResumeState, np.ndarray]] = deque()
        # The batch that was returned last: its first sample, the state of the stream before it, and
        # the batch itself.
        self._last: tuple[int, ResumeState, Batch] | None = None

    def trial_batch(self, count: int) -> Batch:
        """Return the next `count` windows without consuming them."""
        while len(self._ahead) < count:
            state = self._stream.state_dict()
            self._ahead.append((state, next(self._stream)))
        return self._to_batch([block for _, block in list(self._ahead)[:count]])

    def batch(self, first: int, count: int) -> Batch:
        """Return the next `count` windows, whose first sample has the number `first`.

        If the last batch began with the same sample, return that batch again.
        """
        if self._last is None or self._last[0] != first:
            batch = self.trial_batch(count)
            self._last = first, self._ahead[0][0], batch
            for _ in range(count):
                self._ahead.popleft()
        return self._last[2]

    def resume_state(self, first: int) -> ResumeState | None:
        """Return the state of the stream before sample `first`.

        `first` must be the first sample of the last batch or of the next one.
        """
        if self._last is not None and self._last[0] == first:
            return self._last[1]
        return self._ahead[0][0] if self._ahead else self._stream.state_dict()

    def restore(self, state: ResumeState | None) -> None:
        """Continue from `state`, which `resume_state` returned.

        Raises MisuseError if it is None or does not fit this stream.
        """
        if state is None:
            raise MisuseError(
                "the checkpoint stores no position in a stream; train on the build that it was trained on"
            )
        self._stream.load_state_dict(state)
        self._ahead.clear()
        self._last = None

    def _to_batch(self, blocks: list[np.ndarray]) -> Batch:
        windows = to_device(np.stack(blocks), self._device)  # (B, T + 1)
        return windows[:, :-1], windows[:, 1:], None


class StreamedValidation(ValidationWindows):
    """The blocks that every evaluation of a run reads, always the same and in order."""

    def __init__(self, corpus: StreamCorpus, config: Config, *, device: torch.device) -> None:
        from preprocess.stream import ValidationBlocks, validation_blocks

        if corpus.has_validation:
            size, eval_tokens = config.block_size, config.eval_tokens
            validation = validation_blocks(corpus, block_size=size, eval_tokens=eval_tokens)
        else:
            validation = ValidationBlocks(np.empty((0, config.block_size + 1), corpus.dtype), 0, 0)
        self._blocks, self._device = validation.blocks, device
        self.build_index, self.names = np.zeros(len(validation.blocks), np.int64), [corpus.name]
        self.shares: tuple[float, ...] = (1.0,)
        self.sizes = [TextSize(num_tokens=validation.num_tokens, text_bytes=validation.num_text_bytes)]

    @property
    def num_windows(self) -> int:
        return len(self._blocks)

    def batch(self, indices: np.ndarray) -> Batch:
        windows = to_device(self._blocks[indices], self._device)  # (B, T + 1)
        return windows[:, :-1], windows[:, 1:], None


DataSource = Builds | StreamedText


def open_data_source(setting: str, *, world: World, stream_shards: bool = False) -> DataSource:
    """Open what the setting `data` names: builds, or after `stream:` a recipe. `stream_shards`: the setting.

    Raises MisuseError if there is no such build or recipe, and FolioError if it is damaged.
    """
    parts = setting.split(",")
    if not any(part.strip().startswith(STREAM_PREFIX) for part in parts):
        return _open_builds(setting, world, stream_shards=stream_shards)
    recipe = setting.removeprefix(STREAM_PREFIX)
    if recipe == setting or (not Path(recipe).is_file() and (len(parts) > 1 or NAME_AND_WEIGHT.fullmatch(recipe))):
        raise MisuseError(
            f"data is {setting!r}, but a stream has no weight and cannot be mixed; name one recipe, or build "
            "each and mix the builds"
        )
    # All processes read the same text and would print the same warnings.
    try:
        return StreamedText(recipe, warn if world.is_main else lambda line: None)
    except MisuseError as e:
        hint = f"; {recipe} is a build: leave {STREAM_PREFIX!r} out" if _is_build(recipe) else ""
        raise MisuseError(f"{e}{hint}") from e


def _open_builds(setting: str, world: World, *, stream_shards: bool) -> Builds:
    """Open builds. One process of each machine copies those at URLs."""
    if stream_shards and world.size > 1:
        raise MisuseError(
            f"stream_shards is True, but the run has {world.size} processes, which cannot share a build that is still "
            "being copied; leave it out, and the build is copied first"
        )
    if URL_MARK in setting:
        world.run_on_each_machine(lambda: open_builds(setting, stream_shards=stream_shards))
    return open_builds(setting, stream_shards=stream_shards, quiet=True)


def _is_build(name: str) -> bool:
    try:
        return bool(find_build(name))
    except MisuseError:
        return False


def open_data_splits(source: DataSource, config: Config, *, device: torch.device, world: World) -> Data:
    """Return the training samples and validation windows of `source`.

    Raises MisuseError for settings that `source` does not support, and FolioError if it has too
    little text.
    """
    if isinstance(source, StreamedText):
        return source.open(config, device=device, world=world)
    return open_data(source, config, device=device)


def open_validation(source: DataSource, config: Config, *, device: torch.device) -> ValidationWindows:
    """Return the validation windows of `source`. Raises FolioError if it has none or too little text."""
    windows: ValidationWindows
    if isinstance(source, StreamedText):
        windows = source.open_validation(config, device=device)
    else:
        windows = ValidationData(source, config, device=device)
    if not windows.num_windows:
        raise FolioError(
            f"the validation split of {source.name} is empty, so there is nothing to evaluate; name other data with "
            "--data, or build the text again with --val-fraction above 0"
        )
    return windows
