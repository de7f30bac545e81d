"""The model card of an export."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from preprocess.recipes.catalog import list_builtin_corpora, load_recipe
from preprocess.shards.manifest import Manifest
from tests.helpers.manifests import make_manifest
from tests.helpers.runs import EOT_ID, SPECIAL_TOKENS, VOCAB_SIZE, invoke, make_build, read_metric_rows, write_config
from train.run.checkpoint import Checkpoint, find_checkpoint
from train.run.export_card import make_card
from train.run.run_dir import vocabulary_of

CHAT_TOKENS = {"<|user_start|>": VOCAB_SIZE, "<|user_end|>": VOCAB_SIZE + 1, "<|assistant_start|>": VOCAB_SIZE + 2,
               "<|assistant_end|>": VOCAB_SIZE + 3}  # fmt: skip
HOSTILE = "x`` ` | <b>**bold**</b> [a](b) # no: heading---"  # config.py rejects control characters
HOSTILE_NAME = HOSTILE + "\u202e\n# no: heading\n---\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    build = make_build(folder / "tiny", languages={"0": "und", "1": "no", "2": "x: y"})
    config = write_config(folder / "run.py", build, max_steps=6, learning_rate=2e-3)
    assert invoke("train.py", config).returncode == 0
    return folder / "run"


def read(run: Path) -> tuple[Checkpoint, Manifest]:
    checkpoint = find_checkpoint(run, pytest.fail)
    return checkpoint, vocabulary_of(checkpoint)[1]


def make(checkpoint: Checkpoint, manifest: Manifest, chat_template: str | None = None) -> str:
    return make_card(checkpoint, manifest, num_parameters=12_345, chat_template=chat_template).decode()


def load_metadata(card: str, folder: Path) -> Any:
    hub = pytest.importorskip("huggingface_hub")
    (folder / "README.md").write_text(card, encoding="utf-8")
    return hub.ModelCard.load(folder / "README.md").data.to_dict()


def test_card_says_how_the_model_was_trained(run: Path) -> None:
    checkpoint, manifest = read(run)
    card = make(checkpoint, manifest)
    [row] = [row for row in read_metric_rows(run) if row["step"] == 6 and "val_loss" in row]
    for line in (
        "# A language model trained on `tiny`", "- Parameters: 12,345", "- Context: 16 tokens",
        f"- Vocabulary: {VOCAB_SIZE} ids; tokenizer: `char`", "- Chat template: none",
        f"- Data: `tiny`, build `{manifest.build_id}`", "- Steps: 6; tokens: 768", "- Initial weights: random",
        "- Licence of the corpus: not stated", "learning_rate = 0.002", "n_layer = 2",
        f"- Loss (nats per token): {row['val_loss']:.4f}", f"- Perplexity: {row['perplexity']:.4f}",
        f"- Bits per byte: {row['bits_per_byte']:.4f}",
    ):  # fmt: skip
        assert line in card.splitlines()
    assert str(run.parent) not in card and "out_dir" not in card, "a card that is published has no paths"


def test_front_matter_is_read_by_huggingface_hub(run: Path, tmp_path: Path) -> None:
    assert load_metadata(make(*read(run)), tmp_path) == {
        "license": "unknown", "language": ["no"], "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["folio"],
    }  # fmt: skip


def test_text_of_a_user_has_no_meaning_in_the_card(run: Path, tmp_path: Path) -> None:
    checkpoint, manifest = read(run)
    config = dataclasses.replace(checkpoint.info.config, completion_prompt=HOSTILE, init_from=f"a/{HOSTILE}")
    info = dataclasses.replace(checkpoint.info, config=config)
    manifest = dataclasses.replace(
        manifest, name=HOSTILE_NAME, recipe={"corpus": HOSTILE_NAME}, languages={"0": HOSTILE_NAME}
    )
    card = make(dataclasses.replace(checkpoint, info=info), manifest)
    assert "\u202e" not in card and "\n# no" not in card
    assert re.findall(r"^---$", card, re.MULTILINE) == ["---"] * 2
    shown = HOSTILE + r"\u202e\n# no: heading\n---\n"
    assert f"\n- Corpus: ```{shown}```; " in card
    assert "language" not in load_metadata(card, tmp_path)
    # Outside of code spans and blocks, nothing of the text is left.
    text = re.sub(r"^(`{3,})\n.*?\n\1$", "", card, flags=re.DOTALL | re.MULTILINE)
    assert "bold" not in re.sub(r"(?<!`)(`+)(?!`)(.*?)(?<!`)\1(?!`)", "", text)


def test_card_without_an_evaluation_says_so(run: Path) -> None:
    checkpoint, manifest = read(run)
    card = make(dataclasses.replace(checkpoint, info=dataclasses.replace(checkpoint.info, step=5)), manifest)
    assert "## Validation at step 5" in card and "- Perplexity: not recorded" in card


def test_card_of_a_model_with_a_token_shift_says_that_it_runs_code(run: Path, tmp_path: Path) -> None:
    checkpoint, manifest = read(run)
    config = dataclasses.replace(checkpoint.info.config, arch="modern", token_shift=True)
    card = make(dataclasses.replace(checkpoint, info=dataclasses.replace(checkpoint.info, config=config)), manifest)
    assert load_metadata(card, tmp_path)["library_name"] == "transformers"
    assert (
        card.count("from_pretrained(folder, trust_remote_code=True)") == 2
        and "runs the file `modeling_folio.py`" in card
    )
    assert "trust_remote_code" not in make(checkpoint, manifest)


@pytest.mark.parametrize(
    ("corpus", "fields", "licence"),
    [
        ("tinyshakespeare", {}, "public domain"),
        ("wikitext-2", {}, "CC BY-SA 3.0"),
        ("synthetic", {}, "public domain"),
        ("tinyshakespeare", {"files": []}, "not stated"),  # `--input` replaced the files
        ("synthetic", {"format": "text"}, "not stated"),
        ("own", {}, "not stated"),
        (HOSTILE_NAME, {}, "not stated"),
    ],
)
def test_licence_is_that_of_the_built_in_corpus(run: Path, corpus: str, fields: dict[str, Any], licence: str) -> None:
    checkpoint, manifest = read(run)
    recipe = load_recipe(corpus).resolved() if corpus in list_builtin_corpora() else {"corpus": corpus, "files": []}
    manifest = dataclasses.replace(manifest, recipe=recipe | fields)
    assert f"- Licence of the corpus: {licence}" in make(checkpoint, manifest).splitlines()
    several = dataclasses.replace(checkpoint.info, config=dataclasses.replace(checkpoint.info.config, data="a:1,b:1"))
    card = make(dataclasses.replace(checkpoint, info=several), manifest)
    assert "- Licence of the corpus: not stated" in card.splitlines()  # the other build is not known


@pytest.mark.parametrize("chat_template", [None, "nanochat"])
def test_code_in_the_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat_template: str | None) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokens = CHAT_TOKENS if chat_template else {}
    build = make_build(
        tmp_path / "tiny", vocab_size=VOCAB_SIZE + len(tokens), special_tokens=SPECIAL_TOKENS | tokens,
        recipe={"bos": False, "eot": "append", "tokenizer": "char", "chat_template": chat_template},
    )  # fmt: skip
    result = invoke("train.py", write_config(tmp_path / "run.py", build, max_steps=2, warmup_steps=0))
    assert result.returncode == 0, result.stderr
    assert invoke("export.py", tmp_path / "run", "--output", tmp_path / "out").returncode == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert ("apply_chat_template" in code) == (chat_template is not None)
    assert (tmp_path / "out" / "chat_template.jinja").exists() == (chat_template is not None)
    monkeypatch.chdir(tmp_path / "out")
    names: dict[str, Any] = {}
    exec(code.replace('"Hello"', '"hello"').replace("max_new_tokens=30", "max_new_tokens=3"), names)
    assert names["model"].num_parameters() == int(re.findall(r"Parameters: ([\d,]+)", card)[0].replace(",", ""))
    if chat_template:
        assert names["model"].generation_config.eos_token_id == [EOT_ID, VOCAB_SIZE + 3]


def test_manifest_without_corpus_is_not_recorded(run: Path) -> None:
    checkpoint, _ = read(run)
    assert "- Corpus: not recorded" in make(checkpoint, make_manifest())
