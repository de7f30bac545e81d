"""Exported chat templates: transformers gives the ids and the loss mask that a build of the same chat has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocess.build.build import build
from preprocess.chats.templates import TEMPLATES
from preprocess.progress import Progress
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.format import Build
from preprocess.tokenizers import load_tokenizer
from preprocess.tokenizers.to_huggingface import CHAT_TEMPLATE_FILE, list_end_ids, make_huggingface_files
from tests.helpers.manifests import make_manifest

transformers = pytest.importorskip("transformers")

TURNS = [
    [("user", "Hello"), ("assistant", "Hi! How can I help?")],
    [("system", "Be brief."), ("user", "What is 1 + 1?\nThink."), ("assistant", "2"), ("user", "And \"2 + 2\"?  "),
     ("assistant", "4\n\nDone. ёлка 😀")],
    [("system", "one"), ("system", "two"), ("user", "use the tool"), ("assistant", ""), ("tool", '{"a": [1, 2]}'),
     ("assistant", "1, 2"), ("system", "stop")],
    [("assistant", "I begin."), ("user", "")],
    [("user", "system, user, assistant and tool: a tokenizer of characters needs theirs for chatml")],
]  # fmt: skip
CHATS = [[{"role": role, "content": text} for role, text in chat] for chat in TURNS]
NAMES = [{"role": "user", "content": "a?<|im_end|><|user_end|>b <|endoftext|>"}, {"role": "assistant", "content": "c"}]


def build_chats(folder: Path, template: str, tokenizer: str) -> Build:
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in [*CHATS, NAMES] * 8), encoding="utf-8")
    pieces = {"num_pieces": 340} if tokenizer == "sentencepiece" else {}
    recipe = load_recipe(
        None, inputs=(str(path),), val_fraction=0.0, dedup=False, author="Ann", tokenizer=tokenizer,
        chat_template=template, **pieces,
    )  # fmt: skip
    build(recipe, folder / "build", name="build", source=None, replace=False, progress=Progress(quiet=True))
    return Build(folder / "build")


def export(made: Build, folder: Path) -> Any:
    folder.mkdir()
    for name, data in make_huggingface_files(made.folder, made.manifest, model_max_length=1 << 30).items():
        (folder / name).write_bytes(data)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("tokenizer", ["gpt2", "sentencepiece", "char", "byte"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_chat_template_gives_the_ids_and_the_loss_mask_of_a_build(
    tmp_path: Path, cache: Path, template: str, tokenizer: str
) -> None:
    made = build_chats(tmp_path, template, tokenizer)
    theirs = export(made, tmp_path / "hf")
    control_ids = set(made.manifest.special_tokens.values())
    for number, chat in enumerate(CHATS):
        ids, mask = made.document("train", number).tolist(), made.document_mask("train", number).tolist()
        assert ids[0] == made.manifest.special_tokens["<author_Ann>"] and ids[-1] == made.manifest.eot_id
        encoded = theirs.apply_chat_template(chat, return_assistant_tokens_mask=True)
        assert encoded["input_ids"] == ids[1:-1]
        assert encoded["assistant_masks"] == [int(is_learnt) for is_learnt in mask[1:-1]]
        prompt = theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        [*_, first] = [i for i in prompt if i in control_ids]
        assert first == made.manifest.special_tokens[TEMPLATES[template].turns["assistant"].start]
        assert prompt[: len(ids) - 2] == ids[1:-1]
    assert list_end_ids(made.manifest) == [
        made.manifest.eot_id,
        made.manifest.special_tokens[TEMPLATES[template].turns["assistant"].end],
    ]


@pytest.mark.parametrize("tokenizer", ["gpt2", "sentencepiece", "char", "byte"])
def test_sanitized_messages_do_not_become_control_tokens(tmp_path: Path, cache: Path, tokenizer: str) -> None:
    made = build_chats(tmp_path, "nanochat", tokenizer)
    theirs, ours = export(made, tmp_path / "hf"), load_tokenizer(made.folder, made.manifest)
    control_ids = set(made.manifest.special_tokens.values())
    ids = theirs.apply_chat_template(NAMES, sanitize_control_tokens=True)["input_ids"]
    in_build = made.document("train", len(CHATS)).tolist()[1:-1]
    assert [i for i in ids if i in control_ids] == [i for i in in_build if i in control_ids]
    assert ours.decode_bytes(_without(ids, control_ids)) == ours.decode_bytes(_without(in_build, control_ids))
    # Without the option the text is read as control tokens, as users of Hugging Face expect.
    num_names = sum(name in NAMES[0]["content"] for name in made.manifest.special_tokens)
    found = [i for i in theirs.apply_chat_template(NAMES)["input_ids"] if i in control_ids]
    assert len(found) == 4 + num_names > 4


def _without(ids: list[int], control_ids: set[int]) -> np.ndarray:
    return np.array([i for i in ids if i not in control_ids])


def test_build_without_chat_template_exports_none(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.txt").write_text("Some text.", encoding="utf-8")
    recipe = load_recipe(None, inputs=(str(tmp_path / "a.txt"),), val_fraction=0.0, tokenizer="byte")
    build(recipe, tmp_path / "build", name="build", source=None, replace=False, progress=Progress(quiet=True))
    made = Build(tmp_path / "build")
    files = make_huggingface_files(made.folder, made.manifest, model_max_length=8)
    assert CHAT_TEMPLATE_FILE not in files and list_end_ids(made.manifest) == [made.manifest.eot_id]


def test_list_end_ids_needs_no_end_of_text() -> None:
    tokens = {"<|im_start|>": 256, "<|im_end|>": 257}
    assert list_end_ids(make_manifest(special_tokens=tokens, recipe={"chat_template": "chatml"})) == [257]
    assert list_end_ids(make_manifest(special_tokens=tokens, recipe={"chat_template": "chatml"}, eot_id=257)) == [257]
    assert list_end_ids(make_manifest(recipe={"chat_template": "chatml"})) == []
