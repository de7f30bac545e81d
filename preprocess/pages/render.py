"""Write a page as one HTML file that needs no network.

A page has a template in the folder of the package that describes it. The template extends layout.html,
takes its tables from tables.html and its texts from texts.html, and may include files of both folders.

Bars are drawn by the browser in the cells of tables, with CSS, and not by a chart library: numbers
stay text, which screen readers read and which can be copied, and the page is a few hundred kilobytes.
Jinja escapes every text. The page's content security policy forbids all requests.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jinja2

from preprocess.pages.content import Cell, Page, Table


def render_page(page: Page, package: str, template: str) -> bytes:
    """Return the HTML of `page`, UTF-8, by the file `template` of `package`."""
    folders = (files(package), files(__package__))

    def read(name: str) -> str | None:
        found = (folder.joinpath(name) for folder in folders)
        return next((file.read_text("utf-8") for file in found if file.is_file()), None)

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": format_cell, "bars": list_bars, "has_numbers": has_numbers, "is_number": is_number}
    html: str = environment.get_template(template).render(page=page)
    return html.encode("utf-8", "backslashreplace")


def is_number(value: Any) -> bool:
    return not isinstance(value, str | None)


def has_numbers(table: Table) -> list[bool]:
    """Return for each column of a table whether it has numbers."""
    return [any(is_number(row[column]) for row in table.rows) for column in range(len(table.header))]


def format_cell(value: Cell, column: str) -> str:
    """Return a cell as text: whole numbers with thousands separators, shares in percent."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int):
        return f"{value}" if column == "id" else f"{value:,}"
    if column == "share" or column.startswith("share "):
        return f"{value:.2%}"
    if column == "seconds":
        return f"{value:,.1f}"
    if value and abs(value) < 0.1:
        return f"{value:.3g}"
    return f"{value:,.{0 if abs(value) >= 1000 else 2 if abs(value) >= 10 else 4}f}"


def list_bars(table: Table) -> list[dict[int, float]]:
    """Return for each row the length of the bar of each column with bars, as a percentage of the longest one."""
    longest = max((float(row[column] or 0) for row in table.rows for column in table.bars), default=0) or 1
    return [{column: round(100 * float(row[column] or 0) / longest, 2) for column in table.bars} for row in table.rows]
