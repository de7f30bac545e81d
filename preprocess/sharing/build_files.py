"""The files that a build consists of, as its manifest names them.

A manifest from outside is untrusted. `parse_manifest` has checked that it names only files inside
the folder of the build. Here the sizes of shards follow from their numbers of tokens and documents,
so a received file can be refused before it fills the disk.

build_log.json is not shared: the manifest has no hash of it, and it describes the machine of the
build.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from preprocess.shards.files import check_free_space
from preprocess.shards.format import STATS, TOKENIZER_DIR, file_sizes, token_dtype
from preprocess.shards.manifest import SPLITS, Manifest
from preprocess.shards.manifest_file import MAX_FILE_BYTES, ShardError


@dataclass(frozen=True)
class BuildFile:
    """A file of a build except the manifest."""

    name: str  # relative to the folder of the build, with /
    sha256: str
    size_bytes: int | None  # None if the manifest does not say it: of statistics and tokenizer files

    @property
    def max_bytes(self) -> int:
        """The size that the file can have at most."""
        return MAX_FILE_BYTES if self.size_bytes is None else self.size_bytes


def list_build_files(manifest: Manifest, shown: str) -> list[BuildFile]:
    """Return the files that a manifest names. `shown`: where the manifest is, for messages.

    Raises ShardError if the manifest contradicts itself, or is that of a stream, which has no shards.
    """
    if not manifest.stats_sha256:
        raise ShardError(f"{shown} is not the manifest of a build: it has no statistics; share a whole build")
    if manifest.dtype != (expected := token_dtype(manifest.vocab_size)):
        raise ShardError(f"{shown} has dtype {manifest.dtype!r:.80}, expected {expected!r}; build it again")
    files = [BuildFile(STATS, manifest.stats_sha256, None)]
    files += [
        BuildFile(f"{TOKENIZER_DIR}/{name}", sha256, None) for name, sha256 in sorted(manifest.tokenizer.files.items())
    ]
    dtype = np.dtype(manifest.dtype)
    for split in SPLITS:
        for shard in manifest.splits[split].shards:
            sizes = file_sizes(shard.tokens, shard.documents, dtype, has_mask=shard.mask_sha256 is not None)
            if shard.bytes != sizes["bin"]:
                raise ShardError(
                    f"{shown} gives {shard.file} {shard.bytes:,} bytes, expected {sizes['bin']:,} for its number of "
                    "tokens; build it again"
                )
            stem = PurePosixPath(shard.file).stem
            files += [BuildFile(f"{stem}.{suffix}", sha256, sizes[suffix]) for suffix, sha256 in shard.hashes().items()]
    return files


def count_bytes(files: list[BuildFile]) -> int:
    """Return the number of bytes of those files whose size the manifest says."""
    return sum(file.size_bytes or 0 for file in files)


def check_space(folder: Path, num_bytes: int) -> None:
    """Raise FolioError if the disk of `folder`, which is beside the builds, has less than `num_bytes` free."""
    advice = "choose a folder on another disk (FOLIO_SHARDS, or the target of a push)"
    check_free_space(folder, num_bytes, needed_by="the build needs", advice=advice)
