"""Write one HTML page about runs: `python train/report.py RUN… [--output FILE] [--watch]`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the package `train`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from train.__main__ import run_script

    run_script("report")

from preprocess.errors import MisuseError, format_quantity
from train.core.arguments import Parser, make_path_parser
from train.core.cli import print_result
from train.core.names import make_run_names
from train.reporting.watch import WATCH_S, watch, write_page


def main(arguments: list[str]) -> int:
    """Write the page of the runs that the command line names. Return the exit status."""
    parser = Parser(
        prog="python train/report.py",
        description="Write one HTML page about one or more runs: their curves, settings, builds and samples. It "
        "opens from the disk, without a network.",
        json=True,
    )
    parser.add_argument("runs", nargs="+", type=make_path_parser("RUN"), metavar="RUN", help="the out_dir of a run")
    parser.add_argument(
        "--output",
        type=make_path_parser("--output"),
        metavar="FILE",
        help="a .html file, which is replaced if it exists; missing folders are created [report.html in the first RUN]",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help=f"write the page again every {WATCH_S} seconds until the runs are finished; the page reloads itself",
    )
    options = parser.parse_args(arguments)
    output = options.output or options.runs[0] / "report.html"
    if output.is_dir():
        raise MisuseError(f"--output {output} is a folder; name a file in it, such as {output / 'report.html'}")
    if output.suffix.lower() != ".html":
        raise MisuseError(f"--output {output} ends in {output.suffix!r}, expected .html; choose another --output")
    names = make_run_names(options.runs)
    if options.output:  # the folder of the default is that of a run, which must exist
        output.parent.mkdir(parents=True, exist_ok=True)
    is_quiet = options.quiet or options.json

    def on_start() -> None:
        if not is_quiet:
            print_result(None, [f"watching; open {output} in a browser, press Ctrl-C to stop"], as_json=False)

    size_bytes = (
        watch(options.runs, names, output, on_start=on_start)
        if options.watch
        else write_page(options.runs, names, output)
    )
    lines = [] if options.quiet else [f"wrote {output}, {format_quantity(size_bytes, 'byte')}"]
    print_result({"path": str(output), "size_bytes": size_bytes}, lines, as_json=options.json)
    return 0
