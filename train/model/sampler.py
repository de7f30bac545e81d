"""Prompts and completions as text: control tokens, the tokenizer, and `generate` between them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.format import CONTROL_FIELDS, format_control_token
from preprocess.shards.manifest import Manifest
from train.config import Config
from train.model.base import LanguageModel
from train.model.generate import decode_stream, generate


class Sampler:
    """Completes the prompt that `config` describes (completion_prompt, completion_author, …)."""

    def __init__(self, model: LanguageModel, folder: Path, manifest: Manifest, *, config: Config) -> None:
        """Load the tokenizer of `manifest` from `folder` and encode the prompt.

        Raises MisuseError if the build has no control token for the author, city or year, and
        FolioError if the tokenizer cannot encode the prompt or cannot be loaded.
        """
        self._model, self._config = model, config
        controls = control_tokens(manifest, config)
        self._tokenizer = load_text_tokenizer(folder, manifest)
        self._eot_id = manifest.eot_id
        ids = [*controls.values(), *self._tokenizer.encode_text(config.completion_prompt).tolist()]
        self._ids = ids or [self._eot_id or 0]
        self._prompt = " ".join([*controls, config.completion_prompt])
        # Ids without text: control tokens, and ids of a larger build that the model was trained on
        # before this one.
        self._control_ids = {*manifest.special_tokens.values(), *range(manifest.vocab_size, model.vocab_size)}

    def stream(self, number: int = 0) -> Iterator[str]:
        """Yield the prompt and then the text of completion `number` as it is drawn.

        Raises FolioError if the model's output is not finite.
        """
        yield self._prompt
        with closing(generate(self._model, self._ids, config=self._config, eot_id=self._eot_id, number=number)) as ids:
            yield from decode_stream(self._tokenizer.decode_bytes, (i for i in ids if i not in self._control_ids))


def complete(model: LanguageModel, folder: Path, manifest: Manifest, *, config: Config) -> str:
    """Return the prompt and one completion as text. Arguments and errors are those of Sampler."""
    return "".join(Sampler(model, folder, manifest, config=config).stream())


def load_text_tokenizer(folder: Path, manifest: Manifest) -> Any:
    """Return the tokenizer of `manifest`, whose files are in `folder`.

    Raises FolioError if a file is damaged or missing, or if a library that the tokenizer needs is
    not installed.
    """
    try:
        from preprocess.tokenizers import load_tokenizer
    except ImportError as e:
        raise FolioError(
            f"text needs the tokenizer's libraries, and {e.name} is not installed; pip install folio-lm"
        ) from e
    return load_tokenizer(folder, manifest)


def control_tokens(manifest: Manifest, config: Config) -> dict[str, int]:
    """Return the control tokens before the prompt, by text, in the order of a stored document.

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
                advice = _suggest_name(token, field, special=special)
                raise MisuseError(f"the build {manifest.name} has no {field} {name!r}; {advice}")
            controls[token] = special[token]
    return controls


def _suggest_name(token: str, field: str, *, special: dict[str, int]) -> str:
    names = {t: t.removeprefix(f"<{field}_").removesuffix(">") for t in special if t.startswith(f"<{field}_")}
    if close := difflib.get_close_matches(token, names, n=1):
        return f"did you mean {names[close[0]]!r}?"
    if not names:
        return f"the build has no {field} tokens; leave the {field} out"
    return f"it has {len(names):,} of them, such as {next(iter(names.values()))!r}"
