"""evaluate.py --tasks: real tasks of lm-evaluation-harness in files, on tiny runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from preprocess.shards.files import readable_json
from preprocess.shards.format import DOC_DTYPE, MANIFEST, seal
from tests.conftest import write_split
from tests.helpers.runs import (
    AUTHOR_ID,
    EOT_ID,
    SENTENCE,
    SPECIAL_TOKENS,
    VOCAB_SIZE,
    encode,
    invoke,
    list_steps,
    make_build,
    train_run,
)
from tests.train.evaluation.helpers import CPU, check_error

pytestmark = pytest.mark.slow
QUESTIONS = [
    {"question": "the quick", "choices": ["brown fox", "jumps over", "dog"], "answer": 0},
    {"question": "fox jumps over the", "choices": ["quick", "lazy dog"], "answer": 1},
    {"question": "the lazy", "choices": ["fox", "dog"], "answer": 1},
    {"question": "", "choices": ["the", "qqq"], "answer": 0},
]
CHOICE = """
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
metadata: {version: 2}
"""
ROLLING = """
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{metric: bits_per_byte}]
"""
GENERATION = """
test_split: test
output_type: generate_until
doc_to_text: "the quick "
doc_to_target: "brown fox"
generation_kwargs: {until: [" jumps"], max_gen_toks: 20}
metric_list: [{metric: exact_match}]
"""
LAST_WORD = """
test_split: test
output_type: loglikelihood
doc_to_text: "the quick"
doc_to_target: " brown"
metric_list: [{metric: perplexity}, {metric: acc}]
"""


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A run that has learnt the sentence."""
    return train_run(folder, "learnt", max_steps=300, dropout=0.0, n_embd=48, checkpoint_interval=150)


def write_task(path: Path, rows: list[dict[str, Any]], text: str) -> Path:
    """Write a task file and its data, and return the path of the file."""
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {path.stem}.jsonl}}}}\n"
    path.write_text(f"task: {path.stem}\n{data}{text}")
    return path


def read_rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "task_evaluations.jsonl").read_text().splitlines()]


def metrics_of(row: dict[str, Any]) -> dict[str, float]:
    return {each["metric"]: each["value"] for each in row["metrics"]}


def test_tasks_of_every_kind_are_evaluated_and_stored(run: Path, tmp_path: Path) -> None:
    files = [
        write_task(tmp_path / "choice.yaml", QUESTIONS, CHOICE),
        write_task(tmp_path / "generation.yaml", QUESTIONS, GENERATION),
        write_task(tmp_path / "word.yaml", QUESTIONS, LAST_WORD),
    ]
    result = invoke("evaluate.py", run, "--tasks", ",".join(map(str, files)), *CPU)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    header, first, second, *_ = result.stdout.splitlines()[1:]
    assert result.stdout.startswith("step 300, in fp32 on cpu\n")
    assert header.split() == ["task", "version", "shots", "examples", "metric", "value"]
    assert first.split() == ["choice", "2", "0", "4", "acc", "1.0000", "±", "0.0000"]
    assert second.split()[0] == "acc_norm"
    choice, generation, word = read_rows(run)
    assert metrics_of(choice) == {"acc": 1, "acc_norm": 1} and metrics_of(generation) == {"exact_match": 1}
    assert metrics_of(word)["acc"] == 1 and 1 < metrics_of(word)["perplexity"] < 1.3
    assert word["metrics"][0]["stderr"] == pytest.approx(0, abs=1e-3)  # all questions are the same
    expected = {"step": 300, "task": "choice", "task_file": "choice.yaml", "version": "2", "num_fewshot": 0}
    expected |= {"limit": None, "num_examples": 4, "precision": "fp32", "device": "cpu", "block_size": 16}
    assert {key: choice[key] for key in expected} == expected
    assert choice["metrics"][0] == {
        "metric": "acc", "filter": "none", "value": 1.0, "stderr": 0.0, "higher_is_better": True,
    }  # fmt: skip


def test_limit_all_and_json(run: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path / "wrong.yaml", [{**row, "answer": 1 - row["answer"]} for row in QUESTIONS], CHOICE)
    result = invoke("evaluate.py", run, "--tasks", task, "--limit", 2, "--all", "--json", "--batch-size", 1, *CPU)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["step"] for row in rows] == list_steps(run) and read_rows(run)[-len(rows) :] == rows
    assert all((row["limit"], row["num_examples"]) == (2, 2) for row in rows) and metrics_of(rows[-1])["acc"] == 0


def make_run_with_one_document(folder: Path, text: str) -> Path:
    """Train a run whose validation split is one document: the begin-of-text id, then `text`."""
    build = make_build(folder / "tiny", bos_id=AUTHOR_ID, recipe={"bos": True, "eot": "none", "tokenizer": "char"})
    ids = np.concatenate([[AUTHOR_ID], encode(text)]).astype(np.uint16)
    for path in build.glob("val-*"):
        path.unlink()
    entry = write_split(
        build, "val", ids, [len(ids)], np.zeros(1, DOC_DTYPE), vocab_size=VOCAB_SIZE, text_bytes=len(text)
    )
    manifest = json.loads((build / MANIFEST).read_bytes())
    manifest["splits"]["val"] = entry
    (build / MANIFEST).write_bytes(readable_json(seal(manifest)))
    return train_run(folder, "one")


def test_bits_per_byte_are_those_of_the_validation_split(tmp_path: Path) -> None:
    text = (SENTENCE * 10)[: 16 * 25]  # whole windows, so that both read the same ones
    run = make_run_with_one_document(tmp_path, text)
    assert invoke("evaluate.py", run, *CPU).returncode == 0
    own = json.loads((run / "evaluations.jsonl").read_text())
    task = write_task(tmp_path / "rolling.yaml", [{"text": text}], ROLLING)
    assert invoke("evaluate.py", run, "--tasks", task, *CPU).returncode == 0
    (row,) = read_rows(run)
    # The split has one token more than the text, the begin-of-text id, which nothing predicts.
    expected = own["bits_per_byte"] * len(text) / (len(text) + 1)
    assert metrics_of(row)["bits_per_byte"] == pytest.approx(expected, rel=1e-5) and expected > 0.1


@pytest.mark.parametrize("settings", [{}, {"mask_documents": True, "arch": "modern", "token_shift": True}])
def test_text_begins_as_a_document_does(folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    from train.evaluation.scoring import find_document_start

    manifest = make_manifest(folder)
    masks = bool(settings)
    assert find_document_start(manifest, mask_documents=masks).ids == ([] if masks else [EOT_ID])
    run = train_run(folder, f"start{masks}", **settings)
    texts = ["the quick brown", "jumps over"]  # they fit the context
    task = write_task(tmp_path / "rolling.yaml", [{"text": text} for text in texts], ROLLING)
    result = invoke("evaluate.py", run, "--tasks", task, "--json", *CPU)
    total = sum(score_document(run, encode(text).tolist(), masks=masks) for text in texts)
    found = metrics_of(json.loads(result.stdout))["bits_per_byte"]
    assert found == pytest.approx(-total / math.log(2) / sum(map(len, texts)), abs=1e-5)


def make_manifest(folder: Path) -> Any:
    from preprocess.shards.format import read_manifest

    return read_manifest(folder / "tiny")


@torch.no_grad()
def score_document(run: Path, ids: list[int], *, masks: bool) -> float:
    """Return the log-probability of a document after another, as training computes it."""
    from train.run.checkpoint import find_checkpoint
    from train.run.sampling import open_trained_model

    checkpoint = find_checkpoint(run, print)
    model = open_trained_model(checkpoint, checkpoint.info.config).model.eval()
    total = 0.0
    for end in range(len(ids)):  # one forward pass for each token
        # As in training, the end-of-text id belongs to the document before.
        window, documents = [EOT_ID, *ids[:end]], [0] + [1] * end
        first = max(0, len(window) - model.block_size)
        if masks:
            features = model.features(torch.tensor([window[first:]]), torch.tensor([documents[first:]]))
        else:
            features = model.features(torch.tensor([window[first:]]))
        total += model.logits(features)[0, -1].log_softmax(0)[ids[end]].item()
    return total


def test_control_tokens_in_a_question_are_text(run: Path, tmp_path: Path) -> None:
    (name,) = [token for token, i in SPECIAL_TOKENS.items() if i == EOT_ID]
    task = write_task(tmp_path / "text.yaml", [{**QUESTIONS[0], "question": name}], CHOICE)
    check_error(invoke("evaluate.py", run, "--quiet", "--tasks", task, *CPU), 2, "a text of the task")


def test_scores_equal_those_of_the_harness_own_model(folder: Path, tmp_path: Path) -> None:
    """The harness's model `hf` gives the export of a run the same scores, if contexts begin as documents do."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    from train.evaluation.harness.library import load_tasks, restrict_harness

    class DocumentModel(HFLM):
        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            ids, next_ids = super()._encode_pair(context, continuation)
            return [EOT_ID, *ids], next_ids

    run = train_run(folder, "agree", arch="modern", max_steps=60)
    assert invoke("export.py", run, "--output", tmp_path / "export").returncode == 0
    questions = [row for row in QUESTIONS if row["question"]]  # hf repeats the first id of an empty question
    files = [
        write_task(tmp_path / "choice.yaml", questions, CHOICE),
        write_task(tmp_path / "rolling.yaml", [{"text": SENTENCE * 3}, {"text": "lazy"}], ROLLING),
        write_task(tmp_path / "word.yaml", questions, LAST_WORD),
    ]
    names = [str(file) for file in files]
    assert invoke("evaluate.py", run, "--tasks", ",".join(names), *CPU).returncode == 0
    loaded = load_tasks(names, num_fewshot=None, note=print)
    for task in loaded.task_dict["tasks"].values():
        task.set_fewshot_seed(seed=1234)
    model = DocumentModel(pretrained=str(tmp_path / "export"), device="cpu", batch_size=2, max_length=16)
    with restrict_harness():
        results = evaluate(model, loaded.task_dict, bootstrap_iters=0, log_samples=False)["results"]
    for row in read_rows(run):
        for name, value in metrics_of(row).items():
            assert value == pytest.approx(results[row["task"]][f"{name},none"], rel=1e-4), (row["task"], name)


def test_templates_and_metrics_run_no_code(run: Path, tmp_path: Path) -> None:
    attack = '"{{ question.__class__.__mro__[1].__subclasses__() }}"'
    task = write_task(
        tmp_path / "attack.yaml", QUESTIONS, CHOICE.replace("doc_to_text: question", f"doc_to_text: {attack}")
    )
    result = invoke("evaluate.py", run, "--quiet", "--tasks", task, *CPU)
    check_error(result, 2, "access to attribute '__class__' of 'str' object is unsafe")
    task = write_task(tmp_path / "metric.yaml", QUESTIONS, CHOICE.replace("metric: acc_norm", "metric: code_eval"))
    check_error(invoke("evaluate.py", run, "--tasks", task, *CPU), 2, "has the metric 'code_eval', expected one of ")


def test_wrong_requests_are_one_line(run: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path / "mine.yaml", QUESTIONS, CHOICE)
    for arguments, message in (
        (
            ["--tasks", task, "--num-fewshot", "2"],
            "has no split for 2 examples besides the one that it is evaluated on",
        ),
        (["--tasks", f"{task},{task}"], "twice"),
        (["--tasks", tmp_path / "nothing.yaml"], "there is no task file"),
    ):
        check_error(invoke("evaluate.py", run, *arguments, *CPU), 2, message)
    task = write_task(
        tmp_path / "field.yaml", QUESTIONS, CHOICE.replace("doc_to_choice: choices", "doc_to_choice: options")
    )
    result = invoke("evaluate.py", run, "--tasks", task, *CPU)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "is not a task" in result.stderr


def test_wrong_name_is_answered_with_a_similar_one(run: Path) -> None:
    result = invoke("evaluate.py", run, "--quiet", "--tasks", "helaswag", *CPU)
    check_error(result, 2, "has no task 'helaswag'; did you mean 'hellaswag'")


def test_fewshot_examples_are_solved_questions_of_the_other_split(run: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path / "shots.yaml", QUESTIONS, CHOICE)
    (tmp_path / "train.jsonl").write_text((tmp_path / "shots.jsonl").read_text())
    text = task.read_text().replace("{test: shots.jsonl}", "{test: shots.jsonl, train: train.jsonl}")
    task.write_text(text + "training_split: train\n")
    result = invoke("evaluate.py", run, "--tasks", task, "--num-fewshot", "2", "--json", *CPU)
    assert result.returncode == 0, result.stderr
    row = json.loads(result.stdout)
    assert row["num_fewshot"] == 2 and row["num_examples"] == len(QUESTIONS)
