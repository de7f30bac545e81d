"""The command line of the training benches, and what they print about machine and versions."""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from bench.lib.options import add_scratch_option, parse_path
from bench.lib.report import TRAINING_LIBRARIES, describe_machine, format_versions
from preprocess.errors import FolioError
from preprocess.shards.format import Build

MAX_NANOGPT_IDS = 1 << 16  # nanoGPT stores ids as uint16
NANOGPT_SOURCES = ("train.py", "model.py", "configurator.py")
NANOGPT_FILES = (*NANOGPT_SOURCES, "config/train_shakespeare_char.py")


class Preset(Protocol):
    """The part of a bench's presets that its options depend on."""

    @property
    def folio(self) -> Mapping[str, tuple[str, ...]]:
        """A config file and settings for each recipe of Folio."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The checked command line of a training bench."""

    arguments: argparse.Namespace
    build: Build
    nanogpt: Path | None  # nanoGPT's checkout; None if only Folio runs
    scratch: Path


def run_bench(main: Callable[[], None]) -> None:
    """Call `main`. A signal or an error ends the process with one line, after the temporary files are deleted."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        main()
    except KeyboardInterrupt:
        print("stopped; the temporary files are deleted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (FolioError, OSError) as e:
        sys.exit(f"error: {e}")


def parse_options(
    description: str | None,
    presets: Mapping[str, Preset],
    add_options: Callable[[argparse.ArgumentParser], None],
    check_options: Callable[[argparse.Namespace, Path | None], None],
) -> Options:
    """Parse the command line, and check it before anything runs.

    `add_options` adds the options of a bench, and `check_options` raises FolioError if they are
    wrong. Wrong options end the process with status 2.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", help="a build's folder or name")
    parser.add_argument(
        "--preset", choices=sorted(presets), default="shakespeare-cpu", help="(default: shakespeare-cpu)"
    )
    add_options(parser)
    add_scratch_option(parser)
    arguments = parser.parse_args()
    try:
        build, nanogpt = Build(arguments.build), find_nanogpt()
        check_vocabulary(build)
        settings = [setting for recipe in presets[arguments.preset].folio.values() for setting in recipe]
        if "--device=cuda" in settings and not torch.cuda.is_available():
            raise FolioError(f"--preset {arguments.preset} needs a CUDA GPU, and torch finds none; use a CPU preset")
        arguments.scratch.mkdir(parents=True, exist_ok=True)
        check_options(arguments, nanogpt)
    except (FolioError, OSError) as e:
        parser.error(str(e))
    return Options(arguments=arguments, build=build, nanogpt=nanogpt, scratch=arguments.scratch)


def check_vocabulary(build: Build) -> None:
    """Raise FolioError if the build has more ids than nanoGPT can store."""
    if build.vocab_size > MAX_NANOGPT_IDS:
        raise FolioError(
            f"{build.folder} has {build.vocab_size:,} ids, but nanoGPT reads 16-bit ids; use a build with at most "
            f"{MAX_NANOGPT_IDS:,} ids"
        )


def find_nanogpt() -> Path | None:
    """Return the checkout that NANOGPT_DIR names, or None if it is not set.

    Raises FolioError if the folder is not a checkout of nanoGPT.
    """
    folder = os.environ.get("NANOGPT_DIR")
    if not folder:
        return None
    missing = [name for name in NANOGPT_FILES if not (Path(folder) / name).is_file()]
    if missing:
        raise FolioError(f"NANOGPT_DIR is {folder}, which has no {missing[0]}; name a checkout of nanoGPT, or unset it")
    return parse_path(folder)


def print_environment(preset: str, nanogpt: Path | None) -> None:
    """Print machine, date and versions. nanoGPT is identified by a hash, because a checkout may have no commit."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"{describe_machine()}, {gpu}")
    print(f"{format_versions(TRAINING_LIBRARIES)}, {torch.get_num_threads()} threads; preset {preset}")
    if nanogpt:
        files = [nanogpt / name for name in NANOGPT_SOURCES] + sorted((nanogpt / "config").glob("*.py"))
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        print(f"nanoGPT: sha256 {digest[:12]} of {', '.join(NANOGPT_SOURCES)} and config/*.py, concatenated")
    print(flush=True)
