"""Datasets report builds that are damaged, replaced or gone."""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import psutil
import pytest

from preprocess.errors import FolioError
from preprocess.shards.torch_dataset import Documents, ShuffledWindows, TokenWindows, make_loader
from tests.conftest import assert_one_line
from tests.helpers.runs import make_build
from tests.preprocess.shards.helpers import make_numbered_build


def test_datasets_reject_an_id_outside_the_vocabulary(tmp_path: Path) -> None:
    build = make_numbered_build(tmp_path / "flipped", [50], shard_tokens=100)
    with open(build.folder / "train-00000.bin", "r+b") as file:
        file.seek(2 * 30)
        file.write(b"\xff\xff")
    for dataset in (TokenWindows(build, block_size=20), ShuffledWindows(build, block_size=20), Documents(build)):
        with pytest.raises(FolioError, match="holds id 65535, but its vocabulary ends at 49999"):
            list(dataset)


def test_datasets_explain_the_limit_of_open_files(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    build = make_numbered_build(tmp_path / "many", [10] * 100, shard_tokens=10)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (psutil.Process().num_fds() + 100, before[1]))
    try:
        with pytest.raises(
            FolioError,
            match="exceeds the number of files that this process can open; raise the limit, e.g. `ulimit -n 65536`",
        ):
            TokenWindows(build, block_size=4)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_unpickling_rejects_a_replaced_build(tmp_path: Path) -> None:
    dataset = Documents(make_build(tmp_path / "one"))
    sent = bytes(ForkingPickler.dumps(dataset))
    make_build(tmp_path / "other", train_repeats=3)
    (tmp_path / "one").rename(tmp_path / "gone")
    (tmp_path / "other").rename(tmp_path / "one")
    with pytest.raises(FolioError, match="has been replaced by another build"):
        ForkingPickler.loads(sent)


@pytest.mark.parametrize("is_missing", [False, True])
def test_loader_starts_no_worker_for_a_missing_or_replaced_build(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], is_missing: bool
) -> None:
    dataset = ShuffledWindows(make_build(tmp_path / "one"), block_size=8)
    (tmp_path / "one").rename(tmp_path / "gone")
    if not is_missing:
        make_build(tmp_path / "one", train_repeats=3)
    loader = make_loader(dataset, num_workers=2, multiprocessing_context="spawn")
    with pytest.raises(FolioError, match="is not a build" if is_missing else "has been replaced by another build"):
        next(iter(loader))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("ends", [[5, 4, 3], [1, 2, 4], [1, 2, 1 << 60], [0, 0, 0]])
def test_documents_reject_damaged_ends(tmp_path: Path, ends: list[int]) -> None:
    folder = make_numbered_build(tmp_path / "damaged", [1, 1, 3], shard_tokens=100).folder
    np.array(ends, "<u8").tofile(folder / "train-00000.ends")
    with pytest.raises(
        FolioError, match="train-00000.ends does not ascend to the shard's 5 tokens; copy the build again"
    ) as raised:
        Documents(folder)
    assert_one_line(str(raised.value))
