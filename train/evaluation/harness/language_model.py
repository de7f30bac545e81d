"""A trained model as lm-evaluation-harness sees one: it scores continuations, and generates text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from lm_eval.api.model import TemplateLM

from preprocess.errors import MisuseError
from train.config import Config
from train.core.device import make_autocast
from train.evaluation.scoring import Request, ScoringSettings, find_document_start, score
from train.model.generate import cut_at_stop, decode_stream, generate
from train.model.sampler import encode_text, load_text_tokenizer
from train.run.sampling import TrainedModel

MAX_GENERATED_TOKENS = 256  # if a task does not say how many; that is what the harness does for other models
GENERATION_SETTINGS = ("temperature", "top_k", "top_p")
LENGTH_NAMES = ("max_gen_toks", "max_new_tokens")  # in the generation_kwargs of a task


class HarnessModel(TemplateLM):
    """The model and the tokenizer of a checkpoint, for tasks of lm-evaluation-harness.

    Text is encoded as in a build, so it never becomes a control token. Every context begins as a document
    does, see `find_document_start`.
    """

    def __init__(self, trained: TrainedModel, *, batch_size: int, report: Callable[[int, int], None]) -> None:
        """`batch_size` and `report` are those of ScoringSettings.

        Raises FolioError if the tokenizer cannot be loaded.
        """
        super().__init__()
        manifest = trained.manifest
        self._start = find_document_start(manifest, mask_documents=trained.config.mask_documents)
        self._model, self._config, self._eot_id = trained.model, trained.config, manifest.eot_id
        self._text_tokenizer = load_text_tokenizer(trained.folder, manifest)
        self._silent_ids = {*manifest.special_tokens.values(), *range(manifest.vocab_size, trained.model.vocab_size)}
        autocast = make_autocast(trained.config.precision, trained.model.head_weight.device)
        self._scoring = ScoringSettings(batch_size=batch_size, autocast=autocast, report=report)

    @property
    def eot_token_id(self) -> int:
        """The end-of-text id, which the base class requires. No method here uses it."""
        return self._eot_id or 0

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Return the ids of a text, after the ids that begin a document unless `add_special_tokens` is False."""
        return self._encode(string) if add_special_tokens is False else self._start.ids + self._encode(string)

    def _encode(self, text: str) -> list[int]:
        return encode_text(self._text_tokenizer, text, "a text of the task") if text else []

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) its log-probability, and whether it is the most likely one."""
        pairs = []
        for context, continuation in (request.args for request in requests):
            ids, next_ids = self._encode_pair(context, continuation) if context else ([], self._encode(continuation))
            pairs.append((ids, next_ids))
        return self._loglikelihood_tokens(pairs)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Return the log-probability of each text as a document."""
        return [value for value, _ in self._loglikelihood_tokens([([], self._encode(r.args[0])) for r in requests])]

    def _loglikelihood_tokens(self, requests: Sequence[Request], **_: object) -> list[tuple[float, bool]]:
        """Return the score of each continuation. If a context is empty, the continuation begins a document.

        Raises MisuseError if nothing can predict the first token of a document.
        """
        if not self._start.before and not all(context for context, _ in requests):
            raise MisuseError(
                "the documents of this run have neither a begin-of-text nor an end-of-text token (eot = none), so "
                "nothing predicts the first token of a text; choose tasks whose questions have a text"
            )
        scored: list[Request] = []
        for context, continuation in requests:
            # The first token may be predicted from a token to which those after it do not attend. An empty
            # continuation has the score 0, so it leaves the score of the other one unchanged.
            cut = 0 if context or self._start.ids else 1
            first, rest = continuation[:cut], continuation[cut:]
            scored += [(self._start.before, first), (context or self._start.ids or first, rest)]
        scores = score(self._model, scored, self._scoring)
        pairs = zip(scores[::2], scores[1::2], strict=True)
        return [(a.log_probability + b.log_probability, a.is_greedy and b.is_greedy) for a, b in pairs]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Return a completion of each (context, settings), up to one of the texts that end it."""
        completions = []
        for number, request in enumerate(requests):
            context, settings = request.args
            config, stops = _read_generation_settings(settings, self._config)
            completions.append(self._complete(context, config, stops, number))
            self._scoring.report(number + 1, len(requests))
        return completions

    def _complete(self, context: str, config: Config, stops: Sequence[str], number: int) -> str:
        # Leave room for the completion, at most half of the context.
        room = min(config.completion_tokens, self._model.block_size // 2)
        ids = self.tok_encode(context)[-max(1, self._model.block_size - room) :]
        drawn_ids = generate(
            self._model,
            ids or self._start.before or [0],
            config=config,
            eot_id=self._eot_id,
            number=number,
            forget_prompt=not ids,
        )
        text = ""
        with closing(drawn_ids) as drawn:
            visible = (i for i in drawn if i not in self._silent_ids)
            for part in decode_stream(self._text_tokenizer.decode_bytes, visible):
                text += part
                cut = cut_at_stop(text, stops)
                if len(cut) < len(text):
                    return cut
        return text


def _read_generation_settings(settings: dict[str, Any], config: Config) -> tuple[Config, list[str]]:
    """Return `config` with the generation_kwargs of a task, and the texts that end a completion.

    Raises MisuseError for one that Folio does not have, or whose value is out of range.
    """
    rest = dict(settings)
    until = rest.pop("until", None) or []
    lengths = [rest.pop(name) for name in LENGTH_NAMES if name in rest]
    values = {name: rest.pop(name) for name in GENERATION_SETTINGS if rest.get(name) is not None}
    is_sampled = rest.pop("do_sample", values.get("temperature", 0) > 0)
    if unknown := [name for name, value in rest.items() if value is not None]:
        known = ", ".join(["until", "do_sample", *GENERATION_SETTINGS, *LENGTH_NAMES])
        raise MisuseError(f"generation_kwargs of a task have {unknown[0]!r:.80}, which is not supported, only {known}")
    if not is_sampled:
        values = {"temperature": 0.0}
    tokens = lengths[0] if lengths else MAX_GENERATED_TOKENS
    stops = [until] if isinstance(until, str) else list(until)
    return dataclasses.replace(config, completion_tokens=tokens, **values), [stop for stop in stops if stop]
