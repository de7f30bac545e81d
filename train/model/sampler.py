"""TODO."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.format import CONTROL_FIELDS, format_control_token
from train.config import Config
from train.model.base import LanguageModel
from train.model.generate import decode_stream, generate


def sample_text(model: LanguageModel, folder: Path, manifest: dict[str, Any], *, config: Config) -> str:
    """The prompt that `config` describes and what the model makes of it, control tokens in front as they are spelled.

    `folder` holds the tokenizer of `manifest`.

    Raises MisuseError for a name that the build does not know, FolioError for text that its tokenizer cannot encode.
    """
    return "".join(Sampler(model, folder, manifest, config=config).stream())


def load_text_tokenizer(folder: Path, manifest: dict[str, Any]) -> Any:
    """The tokenizer of `manifest`, which `folder` holds. Raises FolioError where it is not whole, or its libraries are missing."""
    try:
        from preprocess.tokenizers import load_tokenizer
    except ImportError as e:
        raise FolioError(
            f"text needs the tokenizer's libraries, and {e.name} is not installed; pip install folio-lm"
        ) from e
    return load_tokenizer(folder, manifest)


class Sampler:
    """A model, what turns its ids into text, and a prompt: texts that begin alike."""

    def __init__(self, model: LanguageModel, folder: Path, manifest: dict[str, Any], *, config: Config) -> None:
        """`folder` holds the tokenizer of `manifest`. Raises as sample_text does."""
        self._model, self._config = model, config
        controls = control_tokens(manifest, config)
        self._tokenizer = load_text_tokenizer(folder, manifest)
        self._eot_id: int | None = manifest["eot_id"]
        ids = [*controls.values(), *self._tokenizer.encode_text(config.completion_prompt).tolist()]
        self._ids = ids or [self._eot_id or 0]
        self._prompt = " ".join([*controls, config.completion_prompt])
        # Ids that stand for no text: control tokens, and those of a larger build that the model was trained on before this one.
        self._silent = {*manifest["special_tokens"].values(), *range(manifest["vocab_size"], model.vocab_size)}

    def stream(self, number: int = 0) -> Iterator[str]:
        """The text of sample `number`, prompt first, in pieces as they come. Raises FolioError where the model is damaged."""
        yield self._prompt
        with closing(generate(self._model, self._ids, config=self._config, eot_id=self._eot_id, number=number)) as ids:
            yield from decode_stream(self._tokenizer.decode_bytes, (i for i in ids if i not in self._silent))


def control_tokens(manifest: dict[str, Any], config: Config) -> dict[str, int]:
    """Spelling and id of what stands in front of the text, in the order of a stored document. Raises MisuseError."""
    special: dict[str, int] = manifest["special_tokens"]
    found: dict[str, int] = {}
    if manifest["recipe"].get("bos") and manifest["bos_id"] is not None:
        found |= {token: i for token, i in special.items() if i == manifest["bos_id"]}
    for field in CONTROL_FIELDS:
        name = getattr(config, f"completion_{field}")
        if name is not None:
            token = format_control_token(field, name)
            if token not in special:
                raise MisuseError(
                    f"the build {manifest['name']} has no {field} {name!r}; {_nearest(token, field, special=special)}"
                )
            found[token] = special[token]
    return found


def _nearest(token: str, field: str, *, special: dict[str, int]) -> str:
    known = {t: t.removeprefix(f"<{field}_").removesuffix(">") for t in special if t.startswith(f"<{field}_")}
    if close := difflib.get_close_matches(token, known, n=1):
        return f"did you mean {known[close[0]]!r}?"
    return (
        f"it names {len(known):,}, such as {next(iter(known.values()))!r}"
        if known
        else f"it names none; leave the {field} out"
    )
