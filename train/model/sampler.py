"""Prompts and completions as text: encode a prompt with its control tokens, and decode what follows."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from preprocess.errors import MAX_SHOWN, FolioError, MisuseError
from preprocess.shards.format import CONTROL_FIELDS, MANIFEST, TOKENIZER_DIR, format_control_token
from preprocess.shards.manifest import Manifest
from train.config import Config
from train.model.base import LanguageModel
from train.model.generate import decode_stream, generate

# What to do if the folder `build` of a run, a copy of the build's manifest and tokenizer, is
# damaged.
RUN_COPY_ADVICE = f"copy {MANIFEST} and {TOKENIZER_DIR} there from the build that the run was trained on"
NUM_SUGGESTIONS = 3
MIN_SIMILARITY = 0.75  # of two spellings, from 0 to 1, as difflib computes it; less similar names are not suggested
MAX_YEAR_DIGITS = 9


class Sampler:
    """Completes the prompt that `config` describes (completion_prompt, completion_author, …)."""

    def __init__(self, model: LanguageModel, folder: Path, manifest: Manifest, *, config: Config) -> None:
        """Load the tokenizer of `manifest` from `folder` and encode the prompt.

        Raises MisuseError if the build has no control token for the author, city or year, or if the
        tokenizer cannot encode the prompt, and FolioError if the tokenizer cannot be loaded.
        """
        self._model, self._config = model, config
        controls = control_tokens(manifest, config)
        self._tokenizer = load_text_tokenizer(folder, manifest)
        self._eot_id = manifest.eot_id
        ids = [*controls.values(), *encode_text(self._tokenizer, config.completion_prompt, "the prompt")]
        self._ids = ids or [self._eot_id or 0]
        self._forget_prompt = config.mask_documents and not ids
        self._prompt = " ".join([*controls, config.completion_prompt])
        # Ids without text: control tokens, and ids of a larger build that the model was trained on
        # before this one.
        self._control_ids = {*manifest.special_tokens.values(), *range(manifest.vocab_size, model.vocab_size)}

    def stream(self, number: int = 0) -> Iterator[str]:
        """Yield the prompt, and then the text of completion `number` while it is generated.

        Raises FolioError if the model's output is not finite.
        """
        yield self._prompt
        drawn = generate(
            self._model,
            self._ids,
            config=self._config,
            eot_id=self._eot_id,
            number=number,
            forget_prompt=self._forget_prompt,
        )
        with closing(drawn) as ids:
            yield from decode_stream(self._tokenizer.decode_bytes, (i for i in ids if i not in self._control_ids))


def complete(model: LanguageModel, folder: Path, manifest: Manifest, *, config: Config) -> str:
    """Return the prompt and its completion as one text. Arguments and errors are those of Sampler."""
    return "".join(Sampler(model, folder, manifest, config=config).stream())


def load_text_tokenizer(folder: Path, manifest: Manifest) -> Any:
    """Return the tokenizer of `manifest`, whose files are in `folder`: a build, or a run's copy of it.

    Raises FolioError if a file is damaged or missing, or if a library that the tokenizer needs is
    not installed.
    """
    try:
        from preprocess.tokenizers import load_tokenizer
    except ImportError as e:
        raise FolioError(
            f"text needs the tokenizer's libraries, and {e.name} is not installed; pip install folio-lm"
        ) from e
    return load_tokenizer(folder, manifest, advice=RUN_COPY_ADVICE)


def encode_text(tokenizer: Any, text: str, name: str) -> list[int]:
    """Return the ids of `text`. Raises MisuseError, which calls it `name`, if it cannot be encoded."""
    try:
        ids: list[int] = tokenizer.encode_text(text).tolist()
    except FolioError as e:
        raise MisuseError(f"{name} {text!r:.80} cannot be encoded: {e}") from e
    return ids


def control_tokens(manifest: Manifest, config: Config) -> dict[str, int]:
    """Return the control tokens before the prompt, text → id, in the order that the build uses.

    Raises MisuseError if the build has no token for completion_author, completion_city or
    completion_year.
    """
    special = manifest.special_tokens
    controls: dict[str, int] = {}
    if manifest.recipe.get("bos") and manifest.bos_id is not None:
        controls |= {token: i for token, i in special.items() if i == manifest.bos_id}
    for field in CONTROL_FIELDS:
        name = getattr(config, f"completion_{field}")
        if name is not None:
            token = format_control_token(field, name)
            if token not in special:
                advice = _suggest_name(name, field, special)
                raise MisuseError(f"the build {manifest.name:.80} has no {field} {name!r:.80}; {advice}")
            controls[token] = special[token]
    return controls


def _suggest_name(name: str | int, field: str, special: Collection[str]) -> str:
    """Return advice on which names of `special`, the build's control tokens, could replace `name`."""
    prefix = f"<{field}_"
    names = [token.removeprefix(prefix).removesuffix(">") for token in special if token.startswith(prefix)]
    if not names:
        return f"the build has no {field} tokens; leave the {field} out"
    if isinstance(name, int):
        years = [int(each) for each in names if each.isdecimal() and len(each) <= MAX_YEAR_DIGITS]
        return f"its nearest {field} is {min(years, key=lambda year: abs(year - name))}" if years else "leave it out"
    if similar := _find_similar(name, names):
        return f"did you mean {' or '.join(f'{each!r:.80}' for each in similar)}?"
    examples = ", ".join(f"{each!r:.80}" for each in names[:NUM_SUGGESTIONS])
    return f"it has {len(names):,} of them, such as {examples}"


def _find_similar(name: str, names: Sequence[str]) -> list[str]:
    """Return at most NUM_SUGGESTIONS of `names` that the user may have meant by `name`.

    They contain `name` as a word or have a similar spelling. Upper and lower case count as equal.
    """
    wanted = "_".join(name[:MAX_SHOWN].casefold().split())
    by_key = {each[:MAX_SHOWN].casefold(): each for each in reversed(names)}
    same_words = [key for key in by_key if f"_{wanted}_" in f"_{key}_"]
    spelled_alike = difflib.get_close_matches(wanted, by_key, n=NUM_SUGGESTIONS, cutoff=MIN_SIMILARITY)
    keys = dict.fromkeys([*sorted(same_words, key=len), *spelled_alike])
    return [by_key[key] for key in keys][:NUM_SUGGESTIONS]
