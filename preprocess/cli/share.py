"""`preprocess pack`, `unpack`, `push` and `pull`: hand a build on to another machine."""

from __future__ import annotations

from pathlib import Path

import click

from preprocess.cli.builds import describe, summarize
from preprocess.cli.completion import complete_build
from preprocess.cli.output import Output, output_options
from preprocess.errors import format_quantity

name_option = click.option(
    "--name", metavar="NAME", help="Name of the build here.  [default: its name in its manifest]"
)


@click.command()
@click.argument("name", shell_complete=complete_build)
@click.option(
    "--output",
    "output_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File to write.  [default: NAME.tar.zst in the current directory]",
)
@click.option("--replace", is_flag=True, help="Replace an existing file.")
@output_options
def pack(output: Output, name: str, output_file: Path | None, replace: bool) -> None:
    """Write a build to one file, NAME.tar.zst.

    NAME is the name or the folder of a build. Every file is compared with its hash in the manifest.
    build_log.json, which has clock times and the machine, is not included. Equal builds give equal
    files. `preprocess unpack` reads the file.
    """
    from preprocess.shards.format import Build
    from preprocess.sharing.pack import pack as run_pack

    build = Build(name)
    path = Path(f"{build.name}.tar.zst") if output_file is None else output_file
    run_pack(build, path, replace=replace, progress=output.progress())
    size_bytes = path.stat().st_size
    output.write({"path": str(path), "size_bytes": size_bytes}, [f"{path}  {format_quantity(size_bytes, 'byte')}"])


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@name_option
@click.option("--replace", is_flag=True, help="Replace another or a damaged build with that name.")
@output_options
def unpack(output: Output, file: Path, name: str | None, replace: bool) -> None:
    """Read a build from a file that `preprocess pack` has written.

    The build is written to shards/NAME, or to $FOLIO_SHARDS/NAME. Every file is compared with its
    hash in the manifest. An archive with links, other files, or more bytes than its manifest
    declares is refused. Nothing is done if the build is there already.
    """
    from preprocess.sharing.unpack import unpack as run_unpack

    folder, is_new = run_unpack(file, name, replace=replace, progress=output.progress())
    _write_received(output, "unpacked", folder, is_new)


@click.command()
@click.argument("name", shell_complete=complete_build)
@click.argument("address", metavar="URL")
@click.option("--replace", is_flag=True, help="Replace another or a damaged build at that place.")
@output_options
def push(output: Output, name: str, address: str, replace: bool) -> None:
    """Copy a build to a folder or a URL.

    NAME is the name or the folder of a build. URL is the folder that will have its files: a path,
    s3://, gs://, another protocol of fsspec, or hf://datasets/OWNER/NAME[@BRANCH][/PATH]. Every file
    is compared with its hash in the manifest, and the manifest is written last, so that no reader sees
    a part of the build. An interrupted push is continued by the same command. Nothing is done if the
    build is there already.
    """
    from preprocess.inputs.remote.addresses import show_url
    from preprocess.shards.format import Build
    from preprocess.sharing.push import push as run_push

    build = Build(name)
    is_new = run_push(build, address, replace=replace, progress=output.progress())
    headline = f"pushed {build.folder} to {show_url(address)}"
    result = {"folder": str(build.folder), "build_id": build.build_id, "url": show_url(address), "is_new": is_new}
    output.write(result, [headline if is_new else f"already there, nothing to do: {show_url(address)}"])


@click.command()
@click.argument("address", metavar="URL")
@name_option
@click.option("--replace", is_flag=True, help="Replace another or a damaged build with that name.")
@output_options
def pull(output: Output, address: str, name: str | None, replace: bool) -> None:
    """Copy a build from a folder or a URL.

    URL is the folder that has the build's manifest.json: a path, https://, s3://, gs://, another
    protocol of fsspec, or hf://datasets/OWNER/NAME[@REVISION][/PATH]. The build is written to
    shards/NAME, or to $FOLIO_SHARDS/NAME. An interrupted copy is continued by the same command.
    Nothing is done if the build is there already; with --replace its bytes are checked first.
    """
    from preprocess.sharing.pull import pull as run_pull

    folder, is_new = run_pull(address, name, replace=replace, progress=output.progress())
    _write_received(output, "pulled", folder, is_new)


def _write_received(output: Output, verb: str, folder: Path, is_new: bool) -> None:
    from preprocess.shards.format import Build

    build = Build(folder)
    headline = f"{verb} {folder}" if is_new else f"already there, nothing to do: {folder}"
    output.write({**describe(build), "is_new": is_new}, [headline, *summarize(build)])
