"""The command `preprocess`. Its subcommands are defined in the other modules of this folder."""

from __future__ import annotations

from preprocess.cli.build import build
from preprocess.cli.builds import list_command, show, stats, verify
from preprocess.cli.corpora import corpora
from preprocess.cli.diff import diff
from preprocess.cli.estimate import estimate
from preprocess.cli.export import export
from preprocess.cli.filter import filter_group
from preprocess.cli.group import CONTEXT_SETTINGS, CommandLine
from preprocess.cli.import_tokens import import_command
from preprocess.cli.merge import merge
from preprocess.cli.output import version_option
from preprocess.cli.rejects import rejects
from preprocess.cli.report import report
from preprocess.cli.share import pack, pull, push, unpack
from preprocess.cli.tokenizer import tokenizer

HELP = """Turn raw text into token shards.

Builds are written to shards/NAME in the current directory, or to $FOLIO_SHARDS/NAME if that variable is set.
"""

main = CommandLine(
    name="preprocess",
    help=HELP,
    context_settings=CONTEXT_SETTINGS,
    commands=[
        build,
        corpora,
        diff,
        estimate,
        export,
        filter_group,
        import_command,
        list_command,
        merge,
        pack,
        pull,
        push,
        rejects,
        report,
        show,
        stats,
        tokenizer,
        unpack,
        verify,
    ],
)
version_option(main)
