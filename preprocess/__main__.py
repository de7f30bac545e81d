"""`python -m preprocess`, for machines on which the command `preprocess` is not on the path."""

from preprocess.cli.main import main

main(prog_name="preprocess")
