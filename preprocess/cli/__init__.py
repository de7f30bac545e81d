"""The command `preprocess`, one module per group of subcommands.

Each subcommand parses its options, calls one function of the library and prints the result. Modules
of the library are imported inside the subcommands, so that `--help` loads only click.
"""
