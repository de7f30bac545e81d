"""Builds with any number of workers, any partitions and any order of tasks have the same bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.build.engines.local import ProcessEngine, SerialEngine
from preprocess.stages.encode import BackendMismatch
from tests.conftest import file_bytes
from tests.preprocess.build.helpers import build_corpus

FEW_EXAMPLES = settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize(
    "tokenizer", [{"tokenizer": "gpt2"}, {"tokenizer": "sentencepiece", "num_pieces": 500}, {"tokenizer": "char"}]
)
def test_workers_and_partitions_change_no_byte(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: dict[str, Any]
) -> None:
    expected = file_bytes(build_corpus(corpus, tmp_path / "expected/x", **tokenizer).folder)
    for number, (workers, partition_bytes) in enumerate([(2, 3000), (5, 7001), (1, 500), (2, 1 << 20)]):
        monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", partition_bytes)
        output_dir = tmp_path / str(number) / "x"
        result = build_corpus(corpus, output_dir, workers=workers, **tokenizer)
        assert file_bytes(result.folder) == expected, (workers, partition_bytes)
        assert {path.name for path in output_dir.parent.iterdir()} <= {"x", ".x.lock", ".x.work"}


class ShufflingEngine(SerialEngine):
    """Runs tasks in a random order."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._rng = random.Random(seed)

    def run(self, tasks: Any) -> Iterator[Any]:
        tasks = list(tasks)
        self._rng.shuffle(tasks)
        yield from super().run(tasks)


@FEW_EXAMPLES
@given(st.integers(0, 10**6), st.integers(300, 9000), st.integers(500, 50_000))
def test_order_of_tasks_changes_no_byte(
    corpus: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    partition_bytes: int,
    shard_tokens: int,
) -> None:
    folder = tmp_path_factory.mktemp("builds")
    with monkeypatch.context() as patch:
        patch.setattr("preprocess.build.engines.local.SerialEngine", lambda _: ShufflingEngine(seed))
        patch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", partition_bytes)
        shuffled = file_bytes(build_corpus(corpus, folder / "shuffled/x", shard_tokens=shard_tokens).folder)
    assert shuffled == file_bytes(build_corpus(corpus, folder / "ordered/x", shard_tokens=shard_tokens).folder)


def test_splits_share_no_content_and_no_group(corpus: Path, tmp_path: Path) -> None:
    build = build_corpus(corpus, tmp_path / "x")
    hashes = {split: {bytes(h) for h in build.docs(split)["hash"]} for split in ("train", "val")}
    counts = json.loads((build.folder / "stats.json").read_bytes())["documents"]
    assert not hashes["train"] & hashes["val"] and sum(map(len, hashes.values())) == counts["kept"]
    assert counts["read"] == 3 * 420 and counts["malformed"] == 3 * 9
    assert counts["duplicates"] >= 3 * 20 and counts["empty"] > 0
    positions = {
        split: {(int(entry["source"]), int(entry["position"])) for entry in build.docs(split)}
        for split in ("train", "val")
    }
    files = [(corpus / f"{number}.jsonl").read_text().splitlines() for number in range(3)]
    rows = [[json.loads(line) for line in lines if "broken" not in line] for lines in files]
    groups = {
        split: {rows[source][position]["pair"] for source, position in positions[split]} - {None} for split in positions
    }
    assert groups["train"] and groups["val"] and not groups["train"] & groups["val"]


def test_control_ids_are_only_at_the_ends_of_a_document(corpus: Path, tmp_path: Path) -> None:
    build = build_corpus(corpus, tmp_path / "x")
    first_control_id, eot_id = 50257, 50256
    for split in ("train", "val"):
        for number in range(len(build.docs(split))):
            ids = build.document(split, number)
            is_special = ids >= eot_id
            num_leading = int(np.argmin(is_special))
            assert num_leading <= 2 and (ids[:num_leading] >= first_control_id).all()
            assert ids[-1] == eot_id and not is_special[num_leading:-1].any()


def test_wrong_backend_ends_its_workers_before_the_reference_starts(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The first engine fails half-way, when its workers still have tasks.

    The second attempt must not get a result of these.
    """
    engines: list[ProcessEngine] = []

    class FailingEngine(ProcessEngine):
        def __init__(self, num_workers: int) -> None:
            super().__init__(num_workers)
            engines.append(self)

        def run(self, tasks: Any) -> Iterator[Any]:
            for number, result in enumerate(super().run(tasks)):
                if len(engines) == 1 and number == 5:
                    raise BackendMismatch("gigatoken differs from tiktoken on 'x'")
                yield result

    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 3000)
    monkeypatch.setattr("preprocess.build.engines.local.ProcessEngine", FailingEngine)
    build = build_corpus(corpus, tmp_path / "x", workers=2)
    assert len(engines) == 2 and not any(worker.process.is_alive() for worker in engines[0]._workers)
    assert "the reference library encodes the whole build" in capsys.readouterr().err
    assert json.loads((build.folder / "build_log.json").read_bytes())["backend"] == "tiktoken"
    assert file_bytes(build.folder) == file_bytes(build_corpus(corpus, tmp_path / "expected/x").folder)
