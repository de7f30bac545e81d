"""What the setting `data` names: one build, or several that are mixed by weight."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from preprocess.errors import MisuseError
from preprocess.shards.files import canonical_json, sha256_bytes, write_durable
from preprocess.shards.format import MANIFEST, SPLITS, TOKENIZER_DIR, Build

WEIGHTED = re.compile(r"\s*(\S.*):(\d+(?:\.\d*)?|\.\d+)\s*")


@dataclass(frozen=True, kw_only=True)
class Builds:
    """Builds of one tokenizer, and the share of the samples that each gives; shares add up to 1."""

    builds: tuple[Build, ...]
    shares: tuple[float, ...]
    vocabulary: Build  # the one among them that knows every control token
    notes: ClassVar[list[str]] = []  # as a stream has them

    @property
    def name(self) -> str:
        if len(self.builds) == 1:
            return self.builds[0].name
        return ", ".join(f"{build.name} {share:.1%}" for build, share in zip(self.builds, self.shares, strict=True))

    @property
    def build_id(self) -> str:
        """Of a mixture a hash of its builds' ids and shares."""
        if len(self.builds) == 1:
            return self.builds[0].build_id
        return sha256_bytes(
            canonical_json(
                [[build.build_id, repr(share)] for build, share in zip(self.builds, self.shares, strict=True)]
            )
        )

    @property
    def tokenizer_sha256(self) -> str:
        """Two builds that share it mean the same by the ids that are not control tokens."""
        return tokenizer_sha256(self.manifest)

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.vocab_size

    @property
    def manifest(self) -> dict[str, Any]:
        return self.vocabulary.manifest

    def save_vocabulary(self, folder: Path) -> None:
        """Write the manifest and the tokenizer of the build that knows most, all that text needs, into `folder`."""
        source = self.vocabulary
        (folder / TOKENIZER_DIR).mkdir(parents=True, exist_ok=True)
        for name in [f"{TOKENIZER_DIR}/{file}" for file in source.manifest["tokenizer"]["files"]] + [MANIFEST]:
            write_durable(folder / name, (source.folder / name).read_bytes())

    def describe(self) -> str:
        """What there is, as a preflight tells it; opening has refused a shard that is cut short, and an id beyond the vocabulary."""
        shards = [
            entry for build in self.builds for split in SPLITS for entry in build.manifest["splits"][split]["shards"]
        ]
        highest = max((entry["max_id"] for entry in shards), default=-1)
        return f"{self.name}: {len(shards):,} shards are there in full size, the highest id is {highest:,} of {self.vocab_size:,}"


def open_builds(setting: str) -> Builds:
    """The builds that `setting` names: `NAME`, or `NAME:WEIGHT,NAME:WEIGHT`.

    Raises ShardError for a build that is not whole, MisuseError where there is none or where two do not share a tokenizer.
    """
    parts = setting.split(",")
    matches = [WEIGHTED.fullmatch(part) for part in parts]
    if not any(matches):
        try:
            build = Build(setting)
        except MisuseError as e:
            hint = "; several builds are mixed by NAME:WEIGHT,NAME:WEIGHT" if {",", ":"} & {*setting} else ""
            raise MisuseError(f"{e}{hint}") from e
        return Builds(builds=(build,), shares=(1.0,), vocabulary=build)
    weights = [float(match[2]) if match else 0.0 for match in matches]
    if not all(0 < weight < math.inf for weight in weights):
        bare = next(part for part, weight in zip(parts, weights, strict=True) if not 0 < weight < math.inf)
        raise MisuseError(
            f"data is {setting!r}, in which {bare.strip()!r} has no weight above 0; write NAME:WEIGHT,NAME:WEIGHT"
        )
    builds = tuple(Build(match[1]) for match in matches if match)
    if len({build.folder.resolve() for build in builds}) < len(builds):
        raise MisuseError(f"data is {setting!r}, in which a build stands twice; add its weights up")
    vocabulary = max(builds, key=lambda build: len(build.manifest["special_tokens"]))
    for build in builds:
        _check_same_meaning(build, vocabulary)
    return Builds(builds=builds, shares=tuple(weight / sum(weights) for weight in weights), vocabulary=vocabulary)


def tokenizer_sha256(manifest: dict[str, Any]) -> str:
    return sha256_bytes(canonical_json(manifest["tokenizer"]))


def _check_same_meaning(build: Build, vocabulary: Build) -> None:
    if tokenizer_sha256(build.manifest) != tokenizer_sha256(vocabulary.manifest):
        raise MisuseError(
            f"{build.name} and {vocabulary.name} have different tokenizers, so that an id means one thing here and another there; "
            "build one with the other's tokenizer: preprocess build --tokenizer FOLDER"
        )
    check_same_control_tokens(build.name, build.manifest, known_by=vocabulary.name, known=vocabulary.manifest)


def check_same_control_tokens(name: str, manifest: dict[str, Any], *, known_by: str, known: dict[str, Any]) -> None:
    """Raise MisuseError for a control token of `manifest` that has another id in the manifest `known`, or none."""
    ids = known["special_tokens"]
    for token, i in manifest["special_tokens"].items():
        if ids.get(token) != i:
            raise MisuseError(
                f"the control token {token} is id {i} in {name} and {ids.get(token, 'unknown')} in {known_by}; "
                f"build {name} with --no-authors"
            )
