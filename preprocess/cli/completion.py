"""What a shell completes after Tab, besides commands and options: names of corpora, builds and files.

Click itself completes commands, options and choices, if the shell has read the script that
`_PREPROCESS_COMPLETE=bash_source preprocess` prints.
"""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem


def complete_corpus(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the built-in corpora that begin with `incomplete`, or the kind `file`, for the path of a recipe."""
    from preprocess.recipes.catalog import list_builtin_corpora

    names = [name for name in list_builtin_corpora() if name.startswith(incomplete)]
    return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="file")]


def complete_build(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the builds in shards/ that begin with `incomplete`, or the kind `dir`, for the folder of a build."""
    from preprocess.shards.format import default_root, list_builds

    names = [folder.name for folder in list_builds(default_root()) if folder.name.startswith(incomplete)]
    return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="dir")]


def complete_path(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the kind `file`, which lets the shell complete files and folders."""
    return [CompletionItem(incomplete, type="file")]
