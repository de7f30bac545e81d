"""Export a run's model and tokenizer: `python train/export.py RUN --output FOLDER`.

Hugging Face's `AutoModelForCausalLM.from_pretrained(FOLDER)` loads the folder. A model with the setting
`token_shift` needs `trust_remote_code=True`. With `--format gguf`, llama.cpp loads the file in it.
docs/exported_model.md describes them.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: the folder train/ would hide the package `train`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from train.__main__ import run_script

    run_script("export")

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from preprocess.console import Console
from preprocess.errors import MisuseError
from preprocess.shards.files import open_new_directory
from train.core.arguments import Parser, make_path_parser
from train.core.cli import print_result, warn
from train.run.checkpoint import check_shapes, find_checkpoint
from train.run.checkpoint_info import CheckpointInfo
from train.run.export_folder import export_model, write_folder
from train.run.export_gguf import GGUF_FILE, QUANTIZED_DTYPES, import_gguf, write_gguf
from train.run.export_model import DTYPES


def main(arguments: list[str]) -> int:
    """Export the run that the command line names. Return the exit status."""
    parser = Parser(
        prog="python train/export.py",
        description="Write a run's model and tokenizer as a folder that other programs load.",
        json=True,
    )
    parser.add_argument(
        "run", type=make_path_parser("RUN"), metavar="RUN", help="a run, by its out_dir, or a checkpoint in it"
    )
    parser.add_argument(
        "--output",
        type=make_path_parser("--output"),
        required=True,
        metavar="FOLDER",
        help="a new or empty folder to write to",
    )
    parser.add_argument(
        "--format",
        choices=["huggingface", "gguf"],
        default="huggingface",
        help="huggingface: a folder for transformers; gguf: a file for llama.cpp, for arch=gpt2 with the tokenizer "
        "gpt2 or sentencepiece (default: huggingface)",
    )
    parser.add_argument(
        "--dtype",
        choices=[*DTYPES, *QUANTIZED_DTYPES],
        default="float32",
        help="the dtype of the weights; those that begin with q are quantized ones of --format gguf (default: float32)",
    )
    parser.add_argument("--best", action="store_true", help="use the checkpoint with the lowest validation loss")
    options = parser.parse_args(arguments)
    if options.dtype in QUANTIZED_DTYPES and options.format != "gguf":
        raise MisuseError(f"--dtype {options.dtype} is quantized, which only --format gguf can store; add it")
    with Console("stderr", quiet=options.quiet or options.json).activity("exporting"):
        info, num_parameters = export(options)
    summary = f"{info.config.arch} of step {info.step:,}, {num_parameters:,} parameters, {info.vocab_size:,} ids"
    result = {"output": str(options.output), "arch": info.config.arch, "step": info.step}
    result |= {"num_parameters": num_parameters, "vocab_size": info.vocab_size}
    print_result(result, [f"{options.output}: {summary}"], as_json=options.json)
    return 0


def export(options: argparse.Namespace) -> tuple[CheckpointInfo, int]:
    """Write the folder. Return what was exported, and its number of parameters."""
    checkpoint = find_checkpoint(options.run, warn, best=options.best)
    info, config = checkpoint.info, checkpoint.info.config
    check_shapes(checkpoint, config)
    if options.format == "gguf":
        import_gguf(config, options.dtype)
    with new_folder(options.output) as temporary:
        rounded_to = "float32" if options.dtype in QUANTIZED_DTYPES else options.dtype
        exported = export_model(checkpoint, rounded_to)
        if options.format == "gguf":
            write_gguf(temporary / GGUF_FILE, exported.tensors, exported.files, config, options.dtype)
        else:
            write_folder(temporary, checkpoint, exported)
    return info, exported.num_parameters


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yield a temporary folder, which is renamed to `output` at the end of the block.

    If the block raises an exception, the folder is deleted. Raises MisuseError if `output` exists
    and is not an empty folder, or if a parent of it is a file.
    """
    target = output.resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise MisuseError(f"{output} must be a new or empty folder; choose another --output, or empty it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as e:
        raise MisuseError(f"{output} is inside a file; choose another --output") from e
    with open_new_directory(target) as temporary:
        yield temporary
