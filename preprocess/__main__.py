"""`python -m preprocess`, for machines where the console script is not on the path."""

from preprocess.cli.cli import main

main(prog_name="preprocess")
