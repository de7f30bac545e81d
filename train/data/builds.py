"""The builds that the setting `data` names: one, or several mixed by weight."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import canonical_json, sha256_bytes, write_durable
from preprocess.shards.format import Build, find_build
from preprocess.shards.manifest import SPLITS, Manifest, TokenizerEntry
from preprocess.shards.replaced import read_unreplaced
from train.config import URL_MARK
from train.core.names import make_run_names

# The number at the end of http://HOST:8000 is a port, not a weight.
NAME_AND_WEIGHT = re.compile(
    r"(?!\s*https?://(?:\[[^]]*\]|[^/:]*):\d+\s*$)\s*(\S.*):(\d+(?:\.\d*)?|\.\d+)\s*", re.IGNORECASE
)
# Settings of a tokenizer that its files determine. The others describe its training: a build that
# trains a tokenizer stores them, but a build that uses a trained one does not know them.
SETTINGS_OF_FILES = ("encoding", "model", "num_pieces", "pattern")


@dataclass(frozen=True, kw_only=True)
class Builds:
    """Builds with the same tokenizer, and the fraction of the samples that comes from each."""

    builds: tuple[Build, ...]
    shares: tuple[float, ...]  # with the sum 1
    vocabulary: Build  # the build with the most control tokens; it has those of all others
    vocabulary_files: Mapping[str, bytes] = field(repr=False, hash=False)  # its manifest and tokenizer, by path
    warnings: ClassVar[list[str]] = []  # always empty; those of a stream are in StreamedText.warnings

    @property
    def names(self) -> list[str]:
        """The name of each build. Builds with the same name are distinguished by the folders that contain them."""
        names = [build.name for build in self.builds]
        if len({*names}) == len(names):
            return names
        ends = make_run_names([build.folder for build in self.builds])
        return [end if names.count(name) > 1 else name for name, end in zip(names, ends, strict=True)]

    @property
    def name(self) -> str:
        if len(self.builds) == 1:
            return self.builds[0].name
        return ", ".join(f"{name} {share:.1%}" for name, share in zip(self.names, self.shares, strict=True))

    @property
    def build_id(self) -> str:
        """The build's id or, for a mixture, a hash of its builds' ids and shares."""
        if len(self.builds) == 1:
            return self.builds[0].build_id
        parts = [[build.build_id, repr(share)] for build, share in zip(self.builds, self.shares, strict=True)]
        return sha256_bytes(canonical_json(parts))

    @property
    def tokenizer_sha256(self) -> str:
        """A hash: builds with the same value encode text by the same ids, except control tokens."""
        return tokenizer_sha256(self.manifest)

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.vocab_size

    @property
    def manifest(self) -> Manifest:
        return self.vocabulary.manifest

    def save_vocabulary(self, folder: Path) -> None:
        """Write the manifest and the tokenizer, which turn ids into text, to `folder`."""
        for name, data in self.vocabulary_files.items():  # the manifest is the last
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_durable(folder / name, data)

    def describe(self) -> str:
        """Return the line that the preflight prints.

        Opening the builds has already checked what the line says.
        """
        splits = [build.manifest.splits[split] for build in self.builds for split in SPLITS]
        shards = [shard for split in splits for shard in split.shards]
        max_id = max((shard.max_id for shard in shards), default=-1)
        state = "still arriving" if any(build.is_streamed for build in self.builds) else "all complete"
        return f"{self.name}: {len(shards):,} shards, {state}; the highest id is {max_id:,} of {self.vocab_size:,}"


def open_builds(setting: str, *, stream_shards: bool = False, quiet: bool = False) -> Builds:
    """Open the builds that `setting` names: `NAME`, or `NAME:WEIGHT,NAME:WEIGHT`.

    A build at a URL is copied to the cache first, or with `stream_shards` while it is read. `quiet`:
    print only warnings about that.

    The tokenizer files are checked against their hashes in the manifests, so that a damaged file is
    found now and not when a run first decodes text. Raises ShardError if a build is damaged, and
    MisuseError if a build does not exist or is named twice, if a weight of a mixture is missing or
    not above 0, or if two builds do not share a tokenizer.
    """
    open_one = partial(_open_build, stream_shards=stream_shards, quiet=quiet)
    parts = setting.split(",")
    matches = [NAME_AND_WEIGHT.fullmatch(part) for part in parts]
    if not any(matches):
        try:
            build, vocabulary_files = open_one(setting)
        except MisuseError as e:
            if {",", ":"} & {*setting}:
                raise MisuseError(f"{e}; mix several builds as NAME:WEIGHT,NAME:WEIGHT") from e
            raise
        return Builds(builds=(build,), shares=(1.0,), vocabulary=build, vocabulary_files=vocabulary_files)
    weights = [float(match[2]) if match else 0.0 for match in matches]
    if not all(0 < weight < math.inf for weight in weights):
        bad = next(part for part, weight in zip(parts, weights, strict=True) if not 0 < weight < math.inf)
        raise MisuseError(f"data is {setting!r}: {bad.strip()!r} has no weight above 0; write NAME:WEIGHT,NAME:WEIGHT")
    opened = [open_one(match[1]) for match in matches if match]
    builds = tuple(build for build, _ in opened)
    if len({build.folder.resolve() for build in builds}) < len(builds):
        raise MisuseError(f"data is {setting!r}, which names a build twice; add its weights")
    vocabulary, vocabulary_files = max(opened, key=lambda item: len(item[0].manifest.special_tokens))
    for build in builds:
        _check_same_vocabulary(build, vocabulary)
    shares = tuple(weight / sum(weights) for weight in weights)
    return Builds(builds=builds, shares=shares, vocabulary=vocabulary, vocabulary_files=vocabulary_files)


def _open_build(name: str, *, stream_shards: bool, quiet: bool) -> tuple[Build, dict[str, bytes]]:
    """Return a build, and its manifest and tokenizer files by their relative paths."""
    if URL_MARK in name:
        try:
            from preprocess.progress import Progress
            from preprocess.sharing.cached_build import get_cached_build
        except ImportError as e:
            raise FolioError(
                f"a build at a URL needs the libraries of preprocess, and {e.name} is not installed; pip install "
                "folio-lm"
            ) from e
        build = get_cached_build(name.strip(), is_streamed=stream_shards, progress=Progress(quiet=quiet))
        return build, build.read_vocabulary()
    folder = find_build(name)

    def read() -> tuple[Build, dict[str, bytes]]:
        build = Build(folder)
        return build, build.read_vocabulary()

    return read_unreplaced(folder, read)


def tokenizer_sha256(manifest: Manifest) -> str:
    """Return a hash of the manifest's tokenizer: of its kind and files, not of how it was trained."""
    tokenizer = manifest.tokenizer
    settings = {key: value for key, value in tokenizer.settings.items() if key in SETTINGS_OF_FILES}
    return _hash_tokenizer(dataclasses.replace(tokenizer, settings=settings))


def has_tokenizer(manifest: Manifest, sha256: str) -> bool:
    """Return whether `sha256`, which a checkpoint stores, is a hash of the manifest's tokenizer.

    Earlier versions of Folio stored a hash that includes the settings of the tokenizer's training.
    """
    return sha256 in (tokenizer_sha256(manifest), _hash_tokenizer(manifest.tokenizer))


def _hash_tokenizer(tokenizer: TokenizerEntry) -> str:
    return sha256_bytes(canonical_json(vars(tokenizer)))


def _check_same_vocabulary(build: Build, vocabulary: Build) -> None:
    if tokenizer_sha256(build.manifest) != tokenizer_sha256(vocabulary.manifest):
        raise MisuseError(
            f"{build.name} and {vocabulary.name} have different tokenizers, so the same id means different "
            "text; build one with the other's tokenizer: preprocess build --tokenizer FOLDER"
        )
    check_same_control_tokens(build.name, build.manifest, other_name=vocabulary.name, other=vocabulary.manifest)


def check_same_control_tokens(name: str, manifest: Manifest, *, other_name: str, other: Manifest) -> None:
    """Raise MisuseError unless the control tokens of `manifest` have the same ids in `other`."""
    ids = other.special_tokens
    for token, i in manifest.special_tokens.items():
        if ids.get(token) != i:
            raise MisuseError(
                f"the control token {token} is id {i} in {name} and {ids.get(token, 'unknown')} in {other_name}; "
                f"build {name} with --no-authors"
            )
