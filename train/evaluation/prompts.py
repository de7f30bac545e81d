"""The prompts of an evaluation: from a file, or drawn from the validation split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preprocess.errors import FolioError, MisuseError, shorten
from preprocess.shards.files import parse_json, read_small_file
from preprocess.shards.manifest import Manifest
from preprocess.shards.permutation import keyed_hash, permute
from train.config import Config
from train.data.builds import Builds
from train.data.streams import DataSource, StreamedText
from train.model.sampler import control_tokens, encode_text

MAX_FILE_BYTES = 16 << 20  # of a file of prompts
MAX_PROMPTS = 100_000  # whose completions are in memory together, and in one line of evaluations.jsonl
MAX_DRAWN_TOKENS = 16  # of a document's text; a completion can be compared with the rest of the document
DRAW_SEED = 0xA5C  # constant, so that all runs complete the same prompts


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text to complete."""

    text: str  # as it is printed, with control tokens
    ids: list[int]  # at least one


def draw_prompts(source: DataSource, count: int, tokenizer: Any) -> list[Prompt]:
    """Return the beginnings of `count` validation documents, with their control tokens.

    The documents depend only on the split and `count`, and the prompts for a smaller count are the
    first of those for a larger one. Raises MisuseError if the split has fewer documents, or if
    `source` is a stream, which does not store documents.
    """
    if not count:
        return []
    if count > MAX_PROMPTS:
        raise MisuseError(f"--prompts must be at most {MAX_PROMPTS:,}, got {count:,}; pass a smaller number")
    if isinstance(source, StreamedText):
        raise MisuseError(
            f"--prompts {count:,} draws prompts from the documents of a build, but {source.name} stores no documents; "
            "pass a file of prompts, or a build with --data"
        )
    sizes = [build.manifest.splits["val"].documents for build in source.builds]
    if count > sum(sizes):
        raise MisuseError(
            f"--prompts is {count:,}, but the validation split has only {sum(sizes):,} documents; pass a smaller number"
        )
    keys = keyed_hash(DRAW_SEED, np.zeros(count, np.uint64))
    numbers = permute(np.arange(count, dtype=np.uint64), sum(sizes), keys).astype(np.int64)
    ends = np.cumsum(sizes)
    documents = []
    for number in numbers.tolist():
        index = int(np.searchsorted(ends, number, side="right"))
        build = source.builds[index]
        with build.reading():
            documents.append(build.document("val", number - int(ends[index] - sizes[index])))
    return [_cut_beginning(document.tolist(), source, tokenizer) for document in documents]


def _cut_beginning(ids: list[int], builds: Builds, tokenizer: Any) -> Prompt:
    """Return a Prompt of a document's leading control tokens and at most half of its text."""
    manifest = builds.manifest
    token_of_id = {i: token for token, i in manifest.special_tokens.items()}
    body = ids[:-1] if ids[-1:] == [manifest.eot_id] else ids
    num_controls = next((n for n, i in enumerate(body) if i not in token_of_id), len(body))
    length = max(1, min(MAX_DRAWN_TOKENS, (len(body) - num_controls) // 2))
    controls, text = body[:num_controls], body[num_controls : num_controls + length]
    prompt_text = " ".join([*(token_of_id[i] for i in controls), tokenizer.decode(np.array(text, np.uint32))])
    return _make_prompt(prompt_text, [*controls, *text], manifest)


def encode_prompt(text: str, manifest: Manifest, tokenizer: Any, config: Config) -> Prompt:
    """Return a Prompt of the control tokens (see `control_tokens`) followed by `text`.

    The model cannot read more than config.block_size ids. If there are more, only the last ones are
    kept, and the prompt's text begins with "…". Raises MisuseError if the tokenizer cannot encode
    `text`, or if `manifest` lacks a control token that `config` names.
    """
    controls = control_tokens(manifest, config)
    ids = [*controls.values(), *encode_text(tokenizer, text, "the prompt")]
    if len(ids) > config.block_size:
        ids = ids[-config.block_size :]
        text_ids = [i for i in ids if i not in controls.values()]
        return _make_prompt("…" + tokenizer.decode(np.array(text_ids, np.uint32)), ids, manifest)
    return _make_prompt(" ".join([*controls, text]), ids, manifest)


def _make_prompt(text: str, ids: list[int], manifest: Manifest) -> Prompt:
    # A tokenizer that normalizes its input may encode a text to nothing, but a model needs one id
    # to begin with.
    return Prompt(text=text, ids=ids or [manifest.eot_id or 0])


def read_prompts(path: Path) -> tuple[str, ...]:
    """Read a file with one prompt per line: text, or in a .jsonl an object with the key `prompt`.
    Empty lines are ignored.

    Raises MisuseError if the file is missing, is not a regular file of at most MAX_FILE_BYTES, has
    no prompts or more than MAX_PROMPTS, or has a line of another form.
    """
    try:
        lines = read_small_file(path, MAX_FILE_BYTES).decode("utf-8-sig").split("\n")
    except (FileNotFoundError, NotADirectoryError) as e:
        raise MisuseError(f"there is no file of prompts {path}; pass a file or a number with --prompts") from e
    except FolioError as e:
        raise MisuseError(f"--prompts: {e}") from e
    except UnicodeDecodeError as e:
        raise MisuseError(f"{path} is not UTF-8 ({e.reason} at byte {e.start:,}); save it as UTF-8") from e
    is_json = path.suffix.lower() == ".jsonl"
    numbered = [(number, line.removesuffix("\r")) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise MisuseError(f"{path} has no prompts; write one per line")
    if len(numbered) > MAX_PROMPTS:
        raise MisuseError(f"{path} has {len(numbered):,} prompts, expected at most {MAX_PROMPTS:,}; divide the file")
    return tuple(_parse_prompt(line, f"{path}, line {number}") if is_json else line for number, line in numbered)


def _parse_prompt(line: str, position: str) -> str:
    try:
        prompt = parse_json(line.encode())["prompt"]
        if type(prompt) is not str or not prompt:
            raise TypeError
        prompt.encode()  # raises ValueError for half of a surrogate pair
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise MisuseError(f'{position} is {shorten(line)}, expected an object with a text as "prompt"') from e
    return prompt
