"""The files of a run of `folio train` that come from its build, by which its directory is recognised."""

from __future__ import annotations

from pathlib import Path

from preprocess.shards.manifest_file import MANIFEST

SETTINGS_FILE = "settings.json"
VOCABULARY_DIR = "build"  # the manifest and the tokenizer of the build that the run is trained on


def is_run(folder: Path) -> bool:
    """Return whether `folder` is the out_dir of a run: it has the settings, and the manifest of the build."""
    return (folder / SETTINGS_FILE).is_file() and (folder / VOCABULARY_DIR / MANIFEST).is_file()
