"""Task files: what is read, and that nothing in them is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocess.errors import MisuseError
from train.evaluation.harness.task_files import is_task_file, read_rows, read_task_file

TASK = """task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: data.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
"""


def write(folder: Path, task: str = TASK, data: bytes = b'{"q": 1}\n') -> Path:
    (folder / "data.jsonl").write_bytes(data)
    (folder / "mine.yaml").write_text(task)
    return folder / "mine.yaml"


def test_task_file_is_read_with_the_data_beside_it(tmp_path: Path) -> None:
    task = read_task_file(write(tmp_path, data=b'{"q": "a", "n": 1}\n\n{"n": 2, "q": "b"}\n'))
    assert (task["task"], task["doc_to_text"]) == ("mine", "{{q}}") and callable(task["custom_dataset"])
    assert read_rows(tmp_path / "data.jsonl") == [{"q": "a", "n": 1}, {"n": 2, "q": "b"}]


def test_dataset_of_the_hub_needs_no_local_data(tmp_path: Path) -> None:
    task = read_task_file(write(tmp_path, "task: mine\ndataset_path: owner/name\ntest_split: test\n"))
    assert "custom_dataset" not in task


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("task: [mine", "is not YAML: while parsing a flow sequence"),
        ("- mine", "must be a YAML mapping"),
        ("group: mine\ntask: [a, b]", "must have the name of one task"),
        (TASK + "process_docs: !function utils.run\n", "runs no code from a task file"),
        (TASK + "process_docs: !!python/name:os.system\n", "is not YAML: could not determine a constructor"),
        (TASK + "class: Mine\n", "has the key 'class', which Folio does not support"),
        (TASK + "use_prompt: other.yaml:x\n", "has the key 'use_prompt'"),
        (TASK.replace("path: json", "path: pandas"), "has dataset_path 'pandas', expected json"),
        (TASK.replace("{test: data.jsonl}}", "{test: data.jsonl}, trust_remote_code: true}"), "must have the data as"),
        (TASK.replace("{test: data.jsonl}", "[data.jsonl]"), "must have the data as dataset_kwargs"),
        (TASK.replace("{test: data.jsonl}", "{test: [a, b]}"), "must name one file for each split"),
        (TASK.replace("split: test", "split: dev"), "has test_split 'dev', which data_files do not name"),
        (TASK.replace("test_split", "training_split"), "has neither test_split nor validation_split"),
        (TASK.replace("data.jsonl", "other.jsonl"), "other.jsonl of the task is missing"),
        (TASK + "metric_list: acc\n", "must have as metric_list a list"),
    ],
)
def test_wrong_task_file_is_one_line(tmp_path: Path, task: str, message: str) -> None:
    with pytest.raises(MisuseError) as e:
        read_task_file(write(tmp_path, task))
    assert message in str(e.value) and "\n" not in str(e.value) and len(str(e.value)) < 500, str(e.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b'{"q": 1}\n{"q": \n', "line 2 is not JSON"),
        (b'{"q": 1}\n[2]\n', "line 2 must be a JSON object, got [2]"),
        (b'{"q": 1}\n{"a": 1}\n', "line 2 has the key 'a', unlike the first line"),
        (b'{"q": 1, "r": 2}\n{"q": 1}\n', "line 2 lacks the key 'r'"),
        (b'{"q": "\xff"}\n', "line 1 is not JSON"),
    ],
)
def test_wrong_data_is_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(MisuseError) as e:
        read_task_file(write(tmp_path, data=data))
    assert message in str(e.value) and "\n" not in str(e.value), str(e.value)


def test_missing_task_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="there is no task file"):
        read_task_file(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("name", "expected"), [("hellaswag", False), ("mine.yaml", True), ("mine.yml", True), ("folder/mine", True)]
)
def test_is_task_file_distinguishes_paths_from_names(name: str, expected: bool) -> None:
    assert is_task_file(name) is expected
