"""Choose the files of a Hugging Face dataset that a path means.

A path is a file, a glob, a folder, `<folder>/<split>`, or the name of a configuration on the
dataset's card with or without a split. Without a path it is the default configuration of the card,
or all data files. If there are tables, other files of a folder are descriptions, code, or copies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from preprocess.errors import MisuseError, shorten
from preprocess.inputs.expand_glob import is_glob
from preprocess.inputs.remote.folder_selection import is_table, select_data

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), ("train", "training")),
    **dict.fromkeys(("validation", "valid", "val", "dev"), ("validation", "valid", "val", "dev")),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), ("test", "testing", "eval", "evaluation")),
}


def select_files(
    paths: Iterable[str], wanted: str, recipe_format: str, card: Any = None
) -> tuple[list[str], list[str]]:
    """Return those of `paths` that `wanted` means, [] if none match, and those that are skipped, both sorted.

    Files of a folder are skipped because of their suffix, as by `select_data`.
    `card`: the header of the dataset's card as parsed YAML, if there is one. Raises MisuseError if
    the dataset has several configurations and `wanted` names none of them.
    """
    paths, wanted = sorted(paths), wanted.strip("/")
    if wanted in paths:
        return [wanted], []
    if is_glob(wanted):
        return match_globs(paths, [wanted]), []
    configs = _read_configs(card)
    if not wanted:
        return _select_default(paths, configs, recipe_format)
    found, skipped = _select_folder(paths, wanted, recipe_format)
    if found:
        return found, skipped
    folder, _, split = wanted.rpartition("/")
    for config, wanted_split in ((wanted, ""), (folder, split)):
        if config in configs:
            return match_globs(paths, configs[config].get(wanted_split, [])), []
    if split not in SPLIT_NAMES:
        return [], []
    found, skipped = (
        [path for path in part if _is_of_split(path, folder, split)]
        for part in _select_folder(paths, folder, recipe_format)
    )
    return found, skipped


def match_globs(paths: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return the paths that match one of `patterns`. `**` is any number of folders."""
    from fsspec.utils import glob_translate

    matches = [re.compile(glob_translate(pattern.strip("/"))).match for pattern in patterns]
    return [path for path in paths if any(match(path) for match in matches)]


def _select_default(
    paths: list[str], configs: dict[str, dict[str, list[str]]], recipe_format: str
) -> tuple[list[str], list[str]]:
    default = next((name for name in configs if name == "default"), None)
    if default is None and len(configs) == 1:
        default = next(iter(configs))
    if default is not None:
        return match_globs(paths, configs[default][""]), []
    if configs:
        names = ", ".join(map(shorten, sorted(configs)[:10])) + (", …" if len(configs) > 10 else "")
        raise MisuseError(f"it has several configurations; add one of them to the address: {names}")
    return _select_folder(paths, "", recipe_format)


def _select_folder(paths: list[str], folder: str, recipe_format: str) -> tuple[list[str], list[str]]:
    prefix = f"{folder}/" if folder else ""
    inside = [path[len(prefix) :] for path in paths if path.startswith(prefix)]
    found, skipped = ([prefix + path for path in part] for part in select_data(inside, recipe_format))
    return list(filter(is_table, found)) or found, skipped


def _is_of_split(path: str, folder: str, split: str) -> bool:
    """Return whether a path in `folder` contains the name of the split as a word of its own."""
    words = re.split(r"[^a-z]+", path[len(folder) :].lower())
    return any(name in words for name in SPLIT_NAMES[split])


def _read_configs(card: Any) -> dict[str, dict[str, list[str]]]:
    """Return the globs of each configuration by split; those of all splits have the key "".

    The card is from outside: what has not the documented form is left out.
    """
    rows = card.get("configs") if isinstance(card, dict) else None
    configs: dict[str, dict[str, list[str]]] = {}
    for row in rows if isinstance(rows, list) else ():
        if not isinstance(row, dict) or not isinstance(row.get("config_name"), str):
            continue
        splits: dict[str, list[str]] = {"": []}
        data_files = row.get("data_files")
        for entry in data_files if isinstance(data_files, list) else [data_files]:
            split, globs = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
            for glob in globs if isinstance(globs, list) else [globs]:
                if isinstance(glob, str) and isinstance(split, str):
                    splits.setdefault(split, []).append(glob)
                    splits[""].append(glob)
        if splits[""]:
            configs[row["config_name"]] = splits
            if row.get("default") is True:
                configs["default"] = splits
    return configs
