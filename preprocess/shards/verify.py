"""Check every byte of a build against its manifest.

Opening a build checks the manifest and compares file sizes. `verify` also hashes every file that
has a hash in the manifest, i.e. all except build_log.json. A hash shows only that a file is the one
that the builder wrote. So `verify` also checks that document ends ascend to the number of tokens,
and that the largest id is the one in the manifest. The cost is reading every file once, and the
files of token ids and document ends twice.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from preprocess.errors import FolioError
from preprocess.shards.files import HASH_CHUNK_BYTES, parse_json, read_small_file, readable_json, sha256_file
from preprocess.shards.format import STATS, TOKENIZER_DIR, Build
from preprocess.shards.loss_mask import count_ones
from preprocess.shards.manifest import SPLITS, ShardEntry
from preprocess.shards.manifest_file import MANIFEST, MAX_FILE_BYTES, ShardError
from preprocess.shards.mapped import has_valid_ends
from preprocess.shards.replaced import read_unreplaced


def verify_newest(folder: Path) -> tuple[Build, list[str]]:
    """Return the build in `folder` and its faults, one line for each.

    If the build is replaced during the check, the new build is checked. Raises ShardError if the
    build cannot be opened, and ReplacedError if it is replaced several times in a row.
    """

    def open_and_verify() -> tuple[Build, list[str]]:
        build = Build(folder)
        return build, list(verify(build))

    return read_unreplaced(folder, open_and_verify)


def verify(build: Build) -> Iterator[str]:
    """Yield one line for each fault found in `build`, and none if it is intact."""
    yield from _verify_manifest(build)
    manifest = build.manifest
    yield from _verify_hash(build.folder / STATS, manifest.stats_sha256)
    for name, expected in sorted(manifest.tokenizer.files.items()):
        yield from _verify_hash(build.folder / TOKENIZER_DIR / name, expected)
    for split in SPLITS:
        for shard in manifest.splits[split].shards:
            yield from _verify_shard(build, shard)


def check_files(build: Build, shards: Iterable[ShardEntry]) -> None:
    """Raise ShardError if a file of `shards` does not have the SHA-256 in the manifest.

    What is made of a damaged build has hashes of its own, so the damage could not be found later.
    """
    for shard in shards:
        for fault in _verify_hashes(build, shard):
            raise ShardError(f"{build.folder} is damaged: {fault}; copy the build again or rebuild it")


def check_known(build: Build, noun: str, numbers: set[int], names: Container[int]) -> None:
    """Raise FolioError if one of the `numbers` of sources or languages, as `noun` says, is not in `names`."""
    # Not a difference of sets, which reads all of `names`: a build may have 20,000 shards and a million sources.
    if unknown := [number for number in numbers if number not in names]:
        raise FolioError(
            f"{build.folder} has documents of {noun} {min(unknown)}, which is not in its manifest; "
            "check it with `preprocess verify`"
        )


def _verify_manifest(build: Build) -> Iterator[str]:
    """Check the formatting of the manifest. `Build` has checked everything else in it."""
    data = read_small_file(build.folder / MANIFEST, MAX_FILE_BYTES)
    # Of a large manifest, a second copy of its values is only made if `build.manifest` lacks keys that the file has.
    if data != readable_json(build.manifest.as_dict()) and data != readable_json(parse_json(data)):
        yield f"{MANIFEST} is not formatted as a builder formats it: it was edited"


def _verify_hash(path: Path, expected: str) -> Iterator[str]:
    if not path.is_file():
        yield f"{path.name} is missing"
    elif (found := sha256_file(path)) != expected:
        yield f"{path.name} has sha256 {found}, its manifest says {expected}"


def _verify_hashes(build: Build, entry: ShardEntry) -> Iterator[str]:
    for suffix, expected in entry.hashes().items():
        yield from _verify_hash((build.folder / entry.file).with_suffix(f".{suffix}"), expected)


def _verify_shard(build: Build, entry: ShardEntry) -> Iterator[str]:
    yield from _verify_hashes(build, entry)
    path, shard = build.folder / entry.file, build.map_shard(entry)
    if not has_valid_ends(shard.ends, num_tokens=len(shard.tokens)):
        yield f"{path.stem}.ends does not ascend to the shard's {len(shard.tokens):,} tokens"
    chunks = (shard.tokens[i : i + HASH_CHUNK_BYTES] for i in range(0, len(shard.tokens), HASH_CHUNK_BYTES))
    max_id = max((int(chunk.max()) for chunk in chunks), default=-1)
    if max_id != entry.max_id:
        yield f"the largest id in {path.name} is {max_id}, its manifest says {entry.max_id}"
    if shard.mask is not None and (num_ones := count_ones(shard.mask)) != entry.loss_tokens:
        yield f"{path.stem}.mask has {num_ones:,} bits that are 1, its manifest says {entry.loss_tokens:,}"
