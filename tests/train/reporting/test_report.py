"""`folio report`: the page of runs."""

from __future__ import annotations

import json
import re
import shutil
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from preprocess.cli.main import main
from tests.helpers.memory import measure_peak_bytes
from tests.helpers.runs import VOCAB_SIZE, invoke, make_build
from tests.preprocess.report.test_report import PageParser
from tests.train.reporting.helpers import write_run
from train.reporting import watch as module
from train.reporting.read_run import MAX_SAMPLES, Sample, read_run
from train.reporting.watch import watch
from train.run.completions import COMPLETIONS_FILE, CompletionRow


def read_data(page: str) -> dict:  # type: ignore[type-arg]
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data: dict = json.loads(found[1])  # type: ignore[type-arg]
    return data


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    settings = {"learning_rate": 5e-3, "completion_prompt": "</script><script>alert(3)</script>"}
    return [write_run(tmp_path / "first"), write_run(tmp_path / "second", loss=2.5, num_steps=20, **settings)]


def test_page_has_the_numbers_of_the_runs(runs: list[Path]) -> None:
    result = invoke("report.py", *runs, "--json")
    path = runs[0] / "report.html"
    assert result.returncode == 0 and not result.stderr
    assert json.loads(result.stdout) == {"path": str(path), "size_bytes": path.stat().st_size}
    page = path.read_text("utf-8")
    data, tables = read_data(page), PageParser(page).tables
    assert data["reload_s"] is None and [run["name"] for run in data["runs"]] == ["first", "second"]
    first = data["runs"][0]
    assert first["tokens_per_step"] == 4 * 2 * 16 and first["training"]["step"] == list(range(1, 41))
    assert first["training"]["seconds"] == [2 * step for step in range(1, 41)]  # 128 tokens at 64 per second
    assert first["evaluations"]["step"] == [0, 10, 20, 30, 40] and first["evaluations"]["val_loss"][0] == 3
    assert [chart["id"] for chart in data["charts"]] == ["loss", "bits", "rate", "gradient", "throughput", "memory"]
    header, *rows = tables["table-settings"]
    assert header == ["setting", "first", "second", "differs"]
    different = {row[0]: row[1:3] for row in rows if row[3]}
    assert set(different) == {"out_dir", "learning_rate", "completion_prompt"}
    assert different["learning_rate"] == ["0.01", "0.005"] and [bool(row[3]) for row in rows[:4]] == [True] * 3 + [
        False
    ]
    assert tables["table-runs"][2][:5] == ["second", "20", "40", "2,560", "40s"]
    assert {row[0]: row[1] for row in tables["table-builds"][1:]}["vocab_size"] == str(VOCAB_SIZE)
    assert len(tables["table-steps"]) == 1 + 40 + 20


def test_missing_folders_of_the_page_are_created(runs: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "new" / "deeper" / "page.html"
    assert invoke("report.py", runs[0], "--output", path).returncode == 0 and path.is_file()
    missing = invoke("report.py", tmp_path / "none")
    assert missing.returncode == 2 and not (tmp_path / "none").exists()


def test_only_the_texts_that_are_shown_are_in_memory(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    rows = [CompletionRow(step=i, text=f"{i} " + "x" * 2500).encode() for i in range(1, 2001)]
    (run / COMPLETIONS_FILE).write_bytes(b"".join(rows))
    found: list[Sample] = []
    peak = measure_peak_bytes(lambda: found.extend(read_run(run, "run").samples))
    assert len(found) == MAX_SAMPLES and found[-1].text.startswith("2000 ")
    assert all(sample.text.startswith(f"{sample.step} ") for sample in found if sample.text.endswith("xxx"))
    assert peak < 2_000_000  # of 5 MB


def test_text_is_never_markup(runs: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert invoke("report.py", *runs, "--output", path).returncode == 0
    page = path.read_text("utf-8")
    parser = PageParser(page)
    assert parser.tags.count("script") == 2 and not {"img", "iframe"} & set(parser.tags)
    assert not [name for name, _ in parser.attributes if name.startswith("on")]
    assert "&lt;script&gt;alert(1)" in page and not {"\x1b", "\u202e"} & set(page)
    addresses = [value for name, value in parser.attributes if name in ("src", "href", "action", "srcset")]
    assert all(value.startswith("#") or value == "data:," for value in addresses)


def test_one_run_is_compared_with_the_defaults(runs: list[Path]) -> None:
    result = invoke("report.py", runs[0])
    assert result.returncode == 0 and result.stdout.startswith(f"wrote {runs[0] / 'report.html'}, ")
    tables = PageParser((runs[0] / "report.html").read_text("utf-8")).tables
    header, *rows = tables["table-settings"]
    assert header == ["setting", "first", "default", "differs"]
    assert ["n_embd", "32", "768", "differs"] in rows and ["grad_clip", "1.0", "1.0", ""] in rows
    assert tables["table-builds"][0] == ["of the build", "first"]


def test_page_of_a_long_run_stays_small(runs: list[Path]) -> None:
    row = '{"step": %d, "train_loss": 3.123456789, "learning_rate": 0.0012345678, "grad_norm": 1.23456, '
    row += '"tokens_per_s": 12345.678, "mfu": 0.3333333, "peak_memory_bytes": 1234567890}\n'
    (runs[0] / "metrics.jsonl").write_text("".join(row % step for step in range(1, 50_000)))
    assert invoke("report.py", *runs).returncode == 0
    assert 100_000 < (runs[0] / "report.html").stat().st_size < 1_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "there is no run none"),
        (["first", "first"], "is named 2 times"),
        (["first", "--output", "first"], "is a folder; name a file in it"),
        (["first", "--output", "first/metrics.jsonl"], "ends in '.jsonl', expected .html"),
    ],
)
def test_misuse_is_one_line(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(runs[0].parent)
    result = invoke("report.py", *arguments)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["metrics.jsonl", "completions.jsonl", "settings.json"])
def test_damaged_file_is_one_line(runs: list[Path], name: str) -> None:
    (runs[0] / name).write_text('{"step": "no"}\n{"step": 1}\n')
    result = invoke("report.py", runs[0])
    assert result.returncode in (1, 2) and name in result.stderr and result.stderr.count("\n") == 1


def test_missing_copy_of_the_build_is_one_line(runs: list[Path]) -> None:
    shutil.rmtree(runs[0] / "build")
    result = invoke("report.py", runs[0])
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"error: {runs[0] / 'build'} is not a build: it has no manifest.json; copy the run again\n"
    )


def test_reports_of_builds_and_runs_point_to_each_other(runs: list[Path], tmp_path: Path) -> None:
    of_build = CliRunner().invoke(main, ["report", str(runs[0])])
    assert of_build.exit_code == 2
    assert (
        f"{runs[0]} is a run, not a build; choose a build that `preprocess list` shows, or use `folio report`"
        in of_build.stderr
    )
    make_build(tmp_path / "tiny")
    of_run = invoke("report.py", tmp_path / "tiny")
    assert of_run.returncode == 2
    assert (
        f"{tmp_path / 'tiny'} is a build, not a run; name a run's out_dir, or use `preprocess report`" in of_run.stderr
    )


def test_watch_writes_the_page_again_until_the_runs_are_finished(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.html"
    pages = []
    done = threading.Event()

    def sleep(_: float) -> None:
        pages.append(read_data(path.read_text("utf-8")))
        assert len(pages) < 9, "the finished run is still watched"
        row = {"step": min(20 + 10 * len(pages), 40), "train_loss": 1.0, "tokens_per_s": 64.0}
        with open(runs[1] / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")

    monkeypatch.setattr(module.time, "sleep", sleep)
    watch(runs, ["first", "second"], path, on_start=done.set)
    assert done.is_set() and pages[0]["reload_s"] == module.WATCH_S
    last = read_data(path.read_text("utf-8"))
    assert last["reload_s"] is None and last["runs"][1]["training"]["step"][-1] == 40
    assert 'id="pause"' not in path.read_text("utf-8")


def test_watch_ends_with_a_page_that_does_not_reload(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: float) -> None:
        assert 'id="pause"' in path.read_text("utf-8")
        raise KeyboardInterrupt

    path = tmp_path / "page.html"
    monkeypatch.setattr(module.time, "sleep", stop)
    result = invoke("report.py", *runs, "--watch", "--output", path)
    assert result.returncode == 130 and result.stdout == f"watching; open {path} in a browser, press Ctrl-C to stop\n"
    assert read_data(path.read_text("utf-8"))["reload_s"] is None
