"""Write a plot as a PNG or SVG file."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import write_durable
from train.core.cli import add_path_to_errors
from train.plotting.curves import Curves
from train.plotting.figure import draw_figure
from train.plotting.style import DOTS_PER_INCH

FORMATS = (".png", ".svg")


def check_output(path: Path) -> None:
    """Raise MisuseError unless `path` can be the name of a plot."""
    if path.is_dir():
        raise MisuseError(f"output {path} is a folder; name a file in it, such as {path / 'loss.png'}")
    if path.suffix.lower() not in FORMATS:
        raise MisuseError(
            f"output {path} ends in {path.suffix!r}, expected {' or '.join(FORMATS)}; choose another --output"
        )


def write_image(runs: Sequence[Curves], path: Path) -> None:
    """Draw the curves of `runs` and write them to the file `path`, as PNG or SVG by its suffix.

    Missing folders are created. The same curves give the same bytes. Raises MisuseError if a parent
    of `path` is not a folder, FolioError if matplotlib is not installed, and OSError if the file
    cannot be written.
    """
    load_matplotlib()
    suffix = path.suffix.lower()
    metadata = {"Date": None} if suffix == ".svg" else None  # write no date, which would change the bytes
    image = io.BytesIO()
    draw_figure(runs).savefig(image, format=suffix.removeprefix("."), dpi=DOTS_PER_INCH, metadata=metadata)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as e:
        raise MisuseError(
            f"output {path} cannot be written, because {path.parent} is not a folder; choose another --output"
        ) from e
    with add_path_to_errors(path):
        write_durable(path, image.getvalue())


def load_matplotlib() -> Any:
    """Import matplotlib, reset its settings from the user's to the defaults, and return the module.

    Raises FolioError if it is not installed.
    """
    # If this variable names an unknown backend, importing matplotlib fails. Saving a figure needs no
    # backend.
    os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as e:
        raise FolioError("plotting needs matplotlib, which is not installed; pip install 'folio-lm[plot]'") from e
    matplotlib.rcdefaults()
    # The rasterizer cannot draw a noisy line of a million points at once, so it gets chunks. The
    # salt makes the ids in an SVG reproducible.
    matplotlib.rcParams.update({"agg.path.chunksize": 10_000, "svg.hashsalt": "folio"})
    return matplotlib
