"""Read the weights of a model folder in the format of Hugging Face's transformers, for `init_from`.

Only safetensors files are read, because reading a pickle can run code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from preprocess.errors import FolioError, MisuseError, shorten
from preprocess.shards.files import PLAIN_NAME, JsonObject, parse_json, read_small_file
from train.core.tensors import TensorFileError, read_tensors
from train.model import ARCHITECTURES, get_architecture
from train.model.base import HuggingFaceFormat, LanguageModel
from train.run.checkpoint_info import MODEL_FILE

CONFIG_FILE, INDEX_FILE, TOKENIZER_FILE = "config.json", "model.safetensors.index.json", "tokenizer.json"
MAX_SIZE = 1 << 20
ADVICE = "; download the folder again"


def read_sizes(folder: Path) -> tuple[str, dict[str, int]]:
    """Return the architecture and the sizes in a folder's config.json, by the names of the settings.

    Raises MisuseError if it describes a model that no architecture here can compute, and FolioError
    if it is damaged.
    """
    hf_config = _read_object(folder / CONFIG_FILE)
    formats = {name: get_architecture(name).huggingface for name in ARCHITECTURES}
    found_type = hf_config.get("model_type", "gpt2")  # which folders of the first years do not name
    for arch, format_ in formats.items():
        if format_ is not None and format_.model_type == found_type:
            return arch, _check_config(folder, hf_config, format_)
    known = " or ".join(format_.model_type for format_ in formats.values() if format_ is not None)
    raise MisuseError(f"init_from {folder} has model_type {found_type!r:.40}, expected {known}; name another model")


def _check_config(folder: Path, hf_config: JsonObject, format_: HuggingFaceFormat) -> dict[str, int]:
    sizes = {}
    for setting, (key, default) in format_.sizes.items():
        size = sizes[setting] = hf_config.get(key, default)
        if type(size) is not int or not 1 <= size <= MAX_SIZE:
            raise FolioError(
                f"{folder / CONFIG_FILE}: {key} must be a whole number from 1 to {MAX_SIZE:,}, got {size!r:.40}{ADVICE}"
            )
    expected = dict(format_.constants) | {key: n * sizes["n_embd"] for key, n in format_.width_keys.items()}
    expected |= {key: sizes[setting] for key, setting in format_.equal_keys.items()}
    found = {key: hf_config.get(key) for key in expected}
    differing = [key for key, value in found.items() if value is not None and value != expected[key]]
    details = [f"{key} {found[key]!r:.60}, not {expected[key]!r}" for key in differing]
    if hf_config.get("quantization_config") is not None:
        details.append("quantized weights")
    for key, max_value in format_.max_values.items():
        value = hf_config.get(key)
        if value is not None and not (isinstance(value, int | float) and 0 <= value <= max_value):
            details.append(f"{key} {value!r:.60}, not at most {max_value:g}")
    if details:
        raise MisuseError(
            f"init_from {folder} has {', '.join(details)}; name a model that differs from {format_.model_type} only in "
            "size"
        )
    return sizes


def read_weights(folder: Path, architecture: type[LanguageModel]) -> dict[str, Tensor]:
    """Return the memory-mapped weights, by the names and in the layout of `architecture`.

    Raises MisuseError if the weights are pickled or not floating-point numbers, and FolioError if they
    are damaged.
    """
    tensors: dict[str, Tensor] = {}
    for path in _list_weight_files(folder):
        for name, tensor in _read_file(path).items():
            if name in tensors:
                raise FolioError(f"{path} contains {shorten(name)} a second time{ADVICE}")
            tensors[name] = tensor
    try:
        imported = architecture.import_tensors(tensors)
    except ValueError as e:
        raise FolioError(f"{folder} contains {shorten(str(e))} a second time{ADVICE}") from e
    for name, tensor in imported.items():
        if not tensor.is_floating_point():
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise MisuseError(
                f"init_from {folder} has {shorten(name)} as {dtype}, which is quantized or not a weight, expected "
                "floating-point numbers; name the model before its quantization"
            )
    return imported


def _list_weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder: one, or those that its index names."""
    if (folder / MODEL_FILE).is_file():
        return [folder / MODEL_FILE]
    index = folder / INDEX_FILE
    if index.is_file():
        weight_map = _read_object(index).get("weight_map")
        files = [*weight_map.values()] if isinstance(weight_map, dict) else []
        names = {name for name in files if isinstance(name, str) and PLAIN_NAME.fullmatch(name)}
        if not names or len(names) < len({*map(str, files)}) or not all(n.endswith(".safetensors") for n in names):
            raise FolioError(f"{index} must name .safetensors files in its folder{ADVICE}")
        if missing := sorted(name for name in names if not (folder / name).is_file()):
            raise FolioError(f"{folder / missing[0]} is missing, which {INDEX_FILE} names{ADVICE}")
        return [folder / name for name in sorted(names)]
    if any(folder.glob("pytorch_model*.bin*")):
        raise MisuseError(
            f"init_from {folder} has its weights in a pickle (pytorch_model.bin), which can run code and is "
            "not read; if you trust it, load it with transformers and save it by save_pretrained(FOLDER, "
            "safe_serialization=True)"
        )
    raise FolioError(f"{folder} has neither {MODEL_FILE} nor {INDEX_FILE}{ADVICE}")


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        return dict(read_tensors(path))
    except TensorFileError as e:
        raise FolioError(f"{e}; download or save it again") from e


def check_shapes(folder: Path, tensors: Mapping[str, Tensor], model: LanguageModel) -> None:
    """Raise FolioError if a name or a shape differs from the model's.

    The number of ids and of positions can differ.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    for name in (*model.vocabulary_weights, *model.position_weights):
        expected[name] = ((shapes.get(name) or expected[name])[0], *expected[name][1:])
    for name in sorted(expected.keys() | shapes.keys()):
        if shapes.get(name) != expected.get(name):
            got, want = (shorten(str(each.get(name) or "nothing")) for each in (shapes, expected))
            raise FolioError(f"{folder} has {got} for {shorten(name)}, but its {CONFIG_FILE} needs {want}{ADVICE}")


def read_added_tokens(folder: Path) -> dict[str, int]:
    """Return the control tokens in a folder's tokenizer.json, text → id; none without the file.

    Raises FolioError if the file is damaged.
    """
    path = folder / TOKENIZER_FILE
    added = (_read_object(path).get("added_tokens") or []) if path.is_file() else []
    try:
        tokens = {token["content"]: token["id"] for token in added}
    except (KeyError, TypeError) as e:
        raise FolioError(f"{path}: added_tokens is not a list of tokens{ADVICE}") from e
    if not all(isinstance(text, str) and type(i) is int and i >= 0 for text, i in tokens.items()):
        raise FolioError(f"{path}: an added token has no text or no id{ADVICE}")
    return tokens


def _read_object(path: Path) -> JsonObject:
    try:
        value = parse_json(read_small_file(path))
    except ValueError as e:
        raise FolioError(f"{path} is not JSON ({shorten(str(e))}){ADVICE}") from e
    if not isinstance(value, dict):
        raise FolioError(f"{path} must be a JSON object, got {type(value).__name__}{ADVICE}")
    return value
