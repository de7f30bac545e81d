"""Builds on a Ray cluster of several nodes on this machine, one of which dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from preprocess.build.drop_duplicates import find_bucket_duplicates
from preprocess.build.engines.interface import StartEngine, Task, WorkerDied, Workload
from preprocess.build.engines.ray_cluster import RayEngine, connect
from preprocess.build.near_dedup.runs import write_runs
from preprocess.build.prepare import encode_partition, prepare_partition
from preprocess.build.write_shards import write_whole_shard
from preprocess.errors import FolioError, MisuseError
from preprocess.shards.format import Build
from preprocess.shards.verify import verify
from tests.conftest import ROOT, file_bytes
from tests.preprocess.build.helpers import build_corpus, list_leftovers, make_corpus_recipe, run_build

SETTINGS = {
    "tokenizer": "char", "shard_tokens": 20_000,  # a trained tokenizer: all phases have tasks
    "near_dedup": "group", "near_dedup_words": 1, "near_dedup_threshold": 0.4,
}  # fmt: skip
PARTITION_BYTES = 8_000


def test_missing_ray_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MisuseError, match=r"^--engine ray needs the package ray; .*folio-lm\[ray\]'`$"):
        connect(None, None).__enter__()


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("ray://head:10001", MisuseError, "Ray Client, .*; run this command on a node of the cluster"),
        ("head", MisuseError, "^the address of a Ray cluster is HOST:PORT, got head$"),
        ("head:99999", MisuseError, "is HOST:PORT, got head:99999$"),
        ("head:0000019999999", MisuseError, "is HOST:PORT, got head:0000019999999$"),
        ("127.0.0.1:PORT", FolioError, r"^no Ray cluster listens at 127.0.0.1:\d+ \(.*refused\); start one"),
    ],
)
def test_wrong_address_is_one_line(
    monkeypatch: pytest.MonkeyPatch, address: str, error: type[FolioError], message: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = address.replace("PORT", str(unused.getsockname()[1]))
    for given, variable in ((address, ""), (None, address)):
        monkeypatch.setenv("RAY_ADDRESS", variable)
        with pytest.raises(error, match=message) as caught:
            connect(given, None).__enter__()
        assert type(caught.value) is error


class Nodes:
    """Nodes of a Ray cluster on this machine. The head has no CPU, so all tasks run on the others."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.address: str = self._cluster.address

    def add(self) -> Any:
        return self._cluster.add_node(num_cpus=1)

    def kill(self, node: Any) -> None:
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
        patch.setenv("RAY_worker_niceness", "0")  # by default 15: the tests would wait for other programs
        nodes = Nodes()
        nodes.add()
    try:
        yield nodes
    finally:
        nodes.close()


@pytest.fixture(scope="module")
def start_engine(nodes: Nodes) -> Iterator[StartEngine]:
    with connect(nodes.address, None) as start_engine:
        yield start_engine


@pytest.fixture
def many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every phase several tasks."""
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", PARTITION_BYTES)
    monkeypatch.setattr("preprocess.build.shuffle.MIN_SECTION_DOCUMENTS", 150)
    monkeypatch.setattr("preprocess.build.near_dedup.near_duplicates.MIN_SECTION_DOCUMENTS", 150)
    monkeypatch.setattr("preprocess.build.near_dedup.near_duplicates.ROWS_PER_TASK", 20)
    monkeypatch.setattr("preprocess.build.shuffle.PAGE_DOCUMENTS", 1)
    monkeypatch.setattr("preprocess.build.buckets.ROWS_PER_BUCKET", 200)


class _KillingEngine(RayEngine):
    """Calls `kill` after the first result of `function`."""

    def __init__(self, workload: Workload, function: Callable[..., Any], kill: Callable[[], None]) -> None:
        super().__init__(workload, max_tasks=None)
        self._function, self._kill = function, kill
        self.num_results = self.num_left = 0

    def run(self, tasks: Any) -> Iterator[tuple[Task, Any]]:
        for task, result in super().run(tasks):
            if task.function == self._function:
                self.num_results += 1
                if self.num_results == 1:
                    self.num_left = len(self._running)
                    self._kill()
            yield task, result


@pytest.mark.slow
def test_command_prints_the_same_as_on_one_machine(nodes: Nodes, corpus: Path, tmp_path: Path) -> None:
    """Stands before the tests that kill nodes, about which Ray prints messages."""

    def run(name: str, *options: str) -> tuple[str, str]:
        command = [sys.executable, "-m", "preprocess", "build", "--input", str(corpus), "--name", "x", "--json"]
        folder = tmp_path / name
        command += ["--output", str(folder / "x"), "--author-column", "who", *options]
        folder.mkdir()
        environment = {**os.environ, "PYTHONPATH": str(ROOT) + os.pathsep + os.environ.get("PYTHONPATH", "")}
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        return tuple(text.replace(str(folder), "") for text in (result.stdout, result.stderr))

    on_cluster, here = run("ray", "--engine", "ray", "--address", nodes.address), run("local")
    assert json.loads(on_cluster[0]) == json.loads(here[0])
    warnings = [[line for line in text.splitlines() if "warning" in line] for _, text in (on_cluster, here)]
    assert warnings[0] == warnings[1] != []
    assert "Traceback" not in on_cluster[1] and "ray" not in on_cluster[1]
    assert file_bytes(tmp_path / "ray/x") == file_bytes(tmp_path / "local/x")


@pytest.mark.slow
def test_what_ray_prints_is_not_part_of_the_result(nodes: Nodes) -> None:
    program = "from preprocess.build.engines.ray_cluster import connect\n"
    program += f"with connect({nodes.address!r}, None): print('from ray')\nprint('the result')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "the result\n" and "from ray\n" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "function", [prepare_partition, find_bucket_duplicates, write_runs, encode_partition, write_whole_shard]
)
@pytest.mark.usefixtures("many_tasks")
def test_node_that_dies_changes_no_byte(
    nodes: Nodes, start_engine: StartEngine, corpus: Path, tmp_path: Path, function: Callable[..., Any]
) -> None:
    victim = nodes.add()
    engines: list[_KillingEngine] = []

    def kill_busy_node() -> None:
        from ray._private.state import available_resources_per_node

        # Short tasks may all have ended by now. Then the node dies without a task, but with their results.
        deadline = time.monotonic() + 5
        while available_resources_per_node().get(victim.node_id, {}).get("CPU", 0) > 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        nodes.kill(victim)

    def start(workload: Workload) -> _KillingEngine:
        engines.append(_KillingEngine(workload, function, kill_busy_node))
        return engines[-1]

    run_build(make_corpus_recipe(corpus, **SETTINGS), tmp_path / "x", start_engine=start)
    assert engines[0].num_left >= 2  # tasks that were running or waiting when the node died
    assert list(verify(Build(tmp_path / "x"))) == []
    assert list_leftovers(tmp_path) == [".x.work"]  # the malformed records
    expected = build_corpus(corpus, tmp_path / "expected/x", **SETTINGS)
    assert json.loads((expected.folder / "stats.json").read_bytes())["split"]["near_duplicates_grouped"] > 10
    assert file_bytes(tmp_path / "x") == file_bytes(expected.folder)
    rejects = [folder / ".x.work/refused.jsonl" for folder in (tmp_path, tmp_path / "expected")]
    assert rejects[0].read_bytes() == rejects[1].read_bytes()


def double(x: int) -> int:
    return 2 * x


def fail() -> None:
    raise FolioError("the reason")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


@pytest.mark.slow
def test_results_errors_and_deaths_of_tasks(
    start_engine: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.build.engines.ray_cluster.MAX_RETRIES", 1)
    workload = Workload(9, 1, tmp_path / "x", None, {"numpy": np.__version__})
    for _ in range(2):  # a build may need a second engine
        with start_engine(workload) as engine:
            tasks = [Task(f"partition {i}", double, (i,), i) for i in range(9)]
            assert sorted((task.key, result) for task, result in engine.run(tasks)) == [(i, 2 * i) for i in range(9)]
            with pytest.raises(FolioError, match="^the reason$"):
                list(engine.run([*tasks, Task("partition 9", fail, ()), *tasks]))
    message = r"^the worker on partition 9 died 2 times \(.*\); run the same command again"
    with start_engine(workload) as engine, pytest.raises(WorkerDied, match=message) as caught:
        list(engine.run([Task("partition 9", die, ())]))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
