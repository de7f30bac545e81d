"""A build that the tests of datasets share."""

from __future__ import annotations

import pytest

from preprocess.shards.format import Build
from tests.preprocess.shards.helpers import make_numbered_build

LENGTHS = [5, 40, 1, 17, 90, 2, 2, 60, 33, 8, 8, 8, 70, 3, 20, 4]  # tokens of the documents


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A build of four shards, one of which is too short for most windows."""
    build = make_numbered_build(tmp_path_factory.mktemp("builds") / "numbered", LENGTHS, shard_tokens=100)
    assert len(build.shards("train")) == 4
    return build
