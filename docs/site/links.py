"""A hook of MkDocs: README.md and CONTRIBUTING.md become pages, and links to other files lead to the code host."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
# Files outside of docs/ → their pages.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^()\s#]+)(#[^()\s]*)?(?=\))")


def on_files(files: Files, *, config: Any) -> Files:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Return the text of a page with links that work on the site."""
    source = next((ROOT / name for name, path in PAGES.items() if path == page.file.src_path), None)
    folder = source.parent if source else ROOT / "docs"

    def replace(match: re.Match[str]) -> str:
        path = (folder / match[1]).resolve().relative_to(ROOT).as_posix()
        anchor = match[2] or ""
        if path in PAGES:
            return PAGES[path] + anchor
        page_path = path.removeprefix("docs/")
        if path.startswith("docs/") and files.get_file_from_path(page_path) is not None:
            return page_path + anchor
        return f"{config.extra['source']}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}{anchor}"

    return LINK.sub(replace, markdown)
