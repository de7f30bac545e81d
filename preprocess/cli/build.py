"""`preprocess build`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from preprocess.cli.builds import describe, summarize
from preprocess.cli.options import RecipeOptions, recipe_options, workers_option
from preprocess.cli.output import Output, output_options
from preprocess.cli.screens import show_new_build
from preprocess.cli.sections import SectionedCommand

if TYPE_CHECKING:
    from preprocess.build.engines.interface import StartEngine


@click.command(cls=SectionedCommand)
@recipe_options
@click.option(
    "--shard-tokens", type=int, metavar="N", help="Start a new shard after the document that reaches N tokens."
)
@click.option("--name", metavar="NAME", help="Name of the build.  [default: the name of the corpus, or 'own']")
@click.option(
    "--output",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the build.  [default: shards/NAME]",
)
@workers_option("Number of processes; with --engine ray, of tasks at once, by default one per CPU of the cluster.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where the work is done: on this machine, or on a Ray cluster that this machine is a node of.",
)
@click.option(
    "--address",
    metavar="HOST:PORT",
    help="Head of the Ray cluster.  [default: $RAY_ADDRESS, or the cluster of this machine]",
)
@click.option("--replace", is_flag=True, help="Replace the build that the folder contains.")
@output_options
def build(
    output: Output, name: str | None, folder: Path | None, workers: int | None, engine: str, address: str | None,
    replace: bool, shard_tokens: int | None, **options: Any,
) -> None:  # fmt: skip
    """Build token shards from a corpus or from your own files.

    Options that are not given take their value from the recipe of the corpus. If the folder
    contains the same build already, nothing is done. An interrupted build is continued.
    """
    from preprocess.build.engines.local import get_default_num_workers, start_fork_server
    from preprocess.inputs.find_inputs import is_larger
    from preprocess.inputs.input_files import PARTITION_BYTES, PARTITION_FILES

    if address is not None and engine != "ray":
        raise click.UsageError(
            f"--address {address!a} is that of a Ray cluster: pass --engine ray too, or leave it out"
        )
    text = RecipeOptions(**options)
    recipe = text.load_recipe(shard_tokens=shard_tokens)
    num_processes = workers if workers and engine == "local" else get_default_num_workers()
    if engine == "local" and num_processes > 1 and is_larger(recipe, PARTITION_BYTES, PARTITION_FILES):
        start_fork_server()  # starting takes half a second; meanwhile this process imports modules and hashes files

    from preprocess.build.build import build as run_build
    from preprocess.build.contamination import format_contamination
    from preprocess.build.filter_stats import format_filter_counts
    from preprocess.build.read_rejects import summarize_rejects
    from preprocess.build.repeated_lines import format_repeated_lines
    from preprocess.build.stats import read_stats
    from preprocess.shards.files import parse_json
    from preprocess.shards.format import Build, check_name, default_root

    name = check_name(recipe.corpus if name is None else name)
    folder = default_root() / name if folder is None else folder
    with _open_engine(engine, address, workers) as start_engine:
        is_new = run_build(
            recipe,
            folder,
            name=name,
            source=text.source,
            replace=replace,
            progress=output.progress(),
            workers=num_processes,
            start_engine=start_engine,
        )
    made = Build(folder)
    headline = f"{'built' if is_new else 'already built, nothing to do:'} {folder}"
    result = {**describe(made), "is_new": is_new, "rejects": summarize_rejects(folder)}
    found = parse_json(read_stats(made)) if recipe.filters or recipe.decontaminate or recipe.dedup_lines else {}
    changes = [*format_repeated_lines(found.get("repeated_lines")), *format_contamination(found.get("decontamination"))]
    lines = [*format_filter_counts(found.get("filters", [])), *changes]
    output.write(
        result,
        [headline, *summarize(made), *(f"  {line}" for line in lines)],
        lambda: show_new_build(describe(made), headline, read_stats(made), changes),
    )


@contextlib.contextmanager
def _open_engine(engine: str, address: str | None, max_tasks: int | None) -> Iterator[StartEngine]:
    """Yield the function that starts the engine, whose cluster is connected during the block."""
    if engine == "ray":
        from preprocess.build.engines.ray_cluster import connect

        with connect(address, max_tasks) as start_engine:
            yield start_engine
    else:
        from preprocess.build.engines.local import start_local_engine

        yield start_local_engine
