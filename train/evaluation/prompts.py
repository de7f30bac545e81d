"""What models are asked: prompts from a file, or the beginnings of validation documents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preprocess.errors import MisuseError, shown
from preprocess.shards.files import parse_json
from preprocess.shards.permutation import keyed_hash, permute
from train.config import Config
from train.data.builds import Builds
from train.data.streams import DataSource, StreamedText
from train.model.sampler import control_tokens

QUESTION_TOKENS = 16  # of a document's text, and at most half of it, so that something is left to answer
QUESTION_SEED = 0xA5C  # not a run's own: runs that are compared are asked the same


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a model is to continue: as it is shown, control tokens as they are spelled, and its ids, of which there is one."""

    prompt: str
    ids: list[int]


def draw_questions(builds: DataSource, count: int, tokenizer: Any) -> list[Question]:
    """The beginnings of `count` validation documents, their control tokens in front; fewer are the first of more.

    Raises MisuseError where there are not as many, or none can be found again.
    """
    if not count:
        return []
    if isinstance(builds, StreamedText):
        raise MisuseError(
            f"--questions is of a build's documents, and {builds.name} keeps none; name prompts by --prompts, or a build by --data"
        )
    sizes = [build.manifest["splits"]["val"]["documents"] for build in builds.builds]
    if count > sum(sizes):
        raise MisuseError(f"--questions is {count:,}, the validation split has {sum(sizes):,} documents; ask for fewer")
    keys = keyed_hash(QUESTION_SEED, np.zeros(count, np.uint64))
    numbers = permute(np.arange(count, dtype=np.uint64), sum(sizes), keys).astype(np.int64)
    edges = np.cumsum(sizes)
    documents = []
    for number in numbers.tolist():
        build = int(np.searchsorted(edges, number, side="right"))
        documents.append(builds.builds[build].document("val", number - int(edges[build] - sizes[build])))
    return [_beginning(document.tolist(), builds, tokenizer) for document in documents]


def _beginning(ids: list[int], builds: Builds, tokenizer: Any) -> Question:
    """The control tokens that a document begins with, and the first of its text."""
    manifest = builds.manifest
    spelled = {i: token for token, i in manifest["special_tokens"].items()}
    body = ids[:-1] if ids[-1:] == [manifest["eot_id"]] else ids
    first = next((n for n, i in enumerate(body) if i not in spelled), len(body))
    most = max(1, min(QUESTION_TOKENS, (len(body) - first) // 2))
    text = body[first : first + most]
    prompt = " ".join([*(spelled[i] for i in body[:first]), tokenizer.decode(np.array(text, np.uint32))])
    return _question(prompt, [*body[:first], *text], manifest)


def question_of(prompt: str, manifest: dict[str, Any], tokenizer: Any, config: Config) -> Question:
    """A prompt, with what every document begins with by `manifest`; of one that is longer than a window the end, which a model sees.

    Raises FolioError for text that the tokenizer cannot encode.
    """
    controls = control_tokens(manifest, config)
    ids = [*controls.values(), *tokenizer.encode_text(prompt).tolist()]
    if len(ids) > config.block_size:
        ids = ids[-config.block_size :]
        text = [i for i in ids if i not in controls.values()]
        return _question("…" + tokenizer.decode(np.array(text, np.uint32)), ids, manifest)
    return _question(" ".join([*controls, prompt]), ids, manifest)


def _question(prompt: str, ids: list[int], manifest: dict[str, Any]) -> Question:
    """Where there is no id to go on from, since a tokenizer drops what it normalises away, the end of a text stands for it."""
    return Question(prompt=prompt, ids=ids or [manifest["eot_id"] or 0])


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts in a file, one a line: of a .jsonl the `prompt` of each object, else text. Empty lines are none. Raises MisuseError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (FileNotFoundError, NotADirectoryError) as e:
        raise MisuseError(f"there is no file of prompts {path}; name one by --prompts") from e
    except IsADirectoryError as e:
        raise MisuseError(f"--prompts {path} is a folder; name a file in it") from e
    except UnicodeDecodeError as e:
        raise MisuseError(f"{path} is not UTF-8 ({e.reason} at byte {e.start:,}); save it as UTF-8") from e
    is_json = path.suffix.lower() == ".jsonl"
    told = [(number, line.removesuffix("\r")) for number, line in enumerate(lines, start=1) if line.strip()]
    if not told:
        raise MisuseError(f"{path} has no prompts; write one a line")
    return tuple(_prompt_of(line, f"{path}, line {number}") if is_json else line for number, line in told)


def _prompt_of(line: str, where: str) -> str:
    try:
        prompt = parse_json(line.encode())["prompt"]
        if type(prompt) is not str or not prompt:
            raise TypeError
        prompt.encode()
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise MisuseError(f'{where} is {shown(line)}, wanted an object with a text as "prompt"') from e
    return prompt
