"""The model card of an export: README.md, which people and the Hugging Face hub read.

The front matter is YAML. Names of data and values of settings are text from a user, and may have any
characters; in Markdown they are written as code, and in YAML only known words are written. The card
has no paths, because they can contain names of people, and the card is meant to be published.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from preprocess.errors import shorten
from preprocess.shards.manifest import Manifest
from train.config import STREAM_PREFIX, Config
from train.core.settings import format_value
from train.model import get_architecture
from train.model.modern import MODELING_FILE
from train.run.checkpoint import Checkpoint, run_of
from train.run.metrics import METRICS_FILE, open_rows

CARD_FILE = "README.md"
NOT_RECORDED, NOT_STATED = "not recorded", "not stated"
# Settings with paths, and those that say how a run was watched.
NOT_IN_CARD = ("data", "out_dir", "init_from", "resume", "device", "track")
LANGUAGE = re.compile(r"[a-z]{2,3}")
UNKNOWN_LANGUAGE = "und"
LOADING = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or its address on the hub
tokenizer = AutoTokenizer.from_pretrained(folder@OPTIONS)
model = AutoModelForCausalLM.from_pretrained(folder@OPTIONS)
@PROMPT
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=30)[0]))
```
"""
TEXT_PROMPT = 'inputs = tokenizer({text}, return_tensors="pt")  # the text that the model continues'
CODE_OPTIONS = ", trust_remote_code=True"
ABOUT_CODE = f"""\
`transformers` does not have the architecture. With `trust_remote_code=True` it runs the file `{MODELING_FILE}`
of this folder, which is the same in every export; read it first.

"""
CHAT_PROMPT = """\
messages = [{"role": "user", "content": "Hello"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")"""


OTHER_USE = """\
No other library implements this architecture.
"""


def make_card(checkpoint: Checkpoint, manifest: Manifest, *, num_parameters: int, chat_template: str | None) -> bytes:
    """Return the README.md of an export.

    `chat_template` is the name of the chat template in the export. Raises FolioError if the run's
    metrics.jsonl is damaged.
    """
    config, info = checkpoint.info.config, checkpoint.info
    data_name, model_type = _name_data(config, manifest), _find_model_type(config, info.vocab_size)
    has_library = _is_loadable(config)
    lines = [
        *_make_front_matter(manifest, has_library=has_library),
        f"# A language model trained on {_code(data_name)}",
        "",
        "Trained and exported by [Folio](https://github.com/folio-lm/folio). It continues text as in its training "
        "data.",
        "",
        "## Model",
        "",
        f"- Architecture: `{config.arch}` (`model_type` {model_type})",
        f"- Parameters: {num_parameters:,}",
        f"- Layers: {config.n_layer:,}; heads: {config.n_head:,}; width: {config.n_embd:,}",
        f"- Context: {config.block_size:,} tokens",
        f"- Vocabulary: {info.vocab_size:,} ids; tokenizer: {_code(manifest.tokenizer.kind)}",
        f"- Chat template: {_code(chat_template) if chat_template else 'none'}",
        "",
        "## Training",
        "",
        f"- Data: {_code(data_name)}, build {_code(info.origin.build_id)}",
        f"- Corpus: {_describe_corpus(manifest)}",
        f"- Licence of the corpus: {_describe_licence(config, manifest)}",
        f"- Initial weights: {_describe_start(config)}",
        f"- Steps: {info.step:,}; tokens: {info.num_samples * config.block_size:,}",
        "",
        "Settings that differ from their defaults:",
        "",
        *_make_code_block(_list_settings(config)),
        "",
        f"## Validation at step {info.step:,}",
        "",
        *_describe_evaluation(checkpoint),
        "",
        "## Use",
        "",
        _describe_use(config, manifest, chat_template=chat_template) if has_library else OTHER_USE,
    ]
    return "\n".join(lines).encode()


def _make_front_matter(manifest: Manifest, *, has_library: bool) -> Iterator[str]:
    found = sorted({tag for tag in manifest.languages.values() if LANGUAGE.fullmatch(tag)} - {UNKNOWN_LANGUAGE})
    yield "---"
    yield "license: unknown"
    if found:
        yield f"language: {json.dumps(found)}"  # JSON is YAML; without quotation marks `no` would be false
    yield f"library_name: {'transformers' if has_library else 'folio'}"
    yield "pipeline_tag: text-generation"
    yield 'tags: ["folio"]'
    yield "---"
    yield ""


def _find_model_type(config: Config, vocab_size: int) -> str:
    return _code(str(get_architecture(config.arch).export_config(config, vocab_size)["model_type"]))


def _is_loadable(config: Config) -> bool:
    return get_architecture(config.arch).huggingface is not None


def _name_data(config: Config, manifest: Manifest) -> str:
    """Return the name of the data, without folders."""
    if config.data.startswith(STREAM_PREFIX):
        return STREAM_PREFIX + Path(config.data.removeprefix(STREAM_PREFIX)).name
    if "," in config.data or ":" in config.data:
        return ", ".join(Path(part).name for part in config.data.split(","))
    return manifest.name


def _describe_corpus(manifest: Manifest) -> str:
    corpus = manifest.recipe.get("corpus")
    if not isinstance(corpus, str):
        return NOT_RECORDED
    return f"{_code(corpus)}; `preprocess corpora` describes it if it is built-in"


def _describe_licence(config: Config, manifest: Manifest) -> str:
    """Return the licence of the built-in corpus. Of several builds, only the first one's manifest is known."""
    from preprocess.recipes.catalog import find_licence

    licence = None if "," in config.data else find_licence(manifest.recipe)
    return licence or NOT_STATED


def _describe_start(config: Config) -> str:
    if config.init_from is not None:
        return _code(config.init_from if config.init_from.startswith("hf:") else Path(config.init_from).name)
    return "random" if config.resume in ("auto", "never") else _code(Path(config.resume).name)


def _list_settings(config: Config) -> list[str]:
    values = {field.name: (getattr(config, field.name), field.default) for field in dataclasses.fields(config)}
    return [
        f"{name} = {shorten(format_value(value))}"
        for name, (value, default) in values.items()
        if value != default and name not in NOT_IN_CARD
    ]


def _describe_evaluation(checkpoint: Checkpoint) -> list[str]:
    rows = [row.values for row in open_rows(run_of(checkpoint) / METRICS_FILE) if row.step == checkpoint.info.step]
    evaluations: list[Mapping[str, float | None]] = [row for row in rows if "val_loss" in row]
    values = evaluations[-1] if evaluations else {}
    names = {
        "val_loss": "Loss (nats per token)",
        "val_loss_stderr": "Standard error of the loss",
        "perplexity": "Perplexity",
        "bits_per_byte": "Bits per byte",
    }
    found = {key: values.get(key) for key in names}
    return [f"- {names[key]}: {NOT_RECORDED if value is None else f'{value:.4f}'}" for key, value in found.items()]


def _describe_use(config: Config, manifest: Manifest, *, chat_template: str | None) -> str:
    text = "tokenizer.eos_token" if manifest.eot_id is not None else '"Text"'
    prompt = CHAT_PROMPT if chat_template else TEXT_PROMPT.format(text=text)
    code = LOADING.replace("@PROMPT", prompt).replace("@OPTIONS", CODE_OPTIONS if config.token_shift else "")
    return ABOUT_CODE + code if config.token_shift else code


def _code(text: str) -> str:
    """Return `text` as a code span of Markdown, in which nothing has a meaning."""
    shown = shorten(text)
    fence = "`" * (_count_backticks(shown) + 1)
    padding = " " if shown.startswith("`") or shown.endswith("`") or not shown.strip() else ""
    return f"{fence}{padding}{shown}{padding}{fence}"


def _make_code_block(lines: list[str]) -> list[str]:
    fence = "`" * max(3, 1 + max(map(_count_backticks, lines), default=0))
    return [fence, *lines, fence]


def _count_backticks(text: str) -> int:
    """Return the length of the longest run of backticks in `text`."""
    return max(map(len, re.findall("`+", text)), default=0)
