"""Write the page of a build as one HTML file that needs no network.

The bars are drawn by the browser in the cells of tables, with CSS, and not by a chart library: numbers
stay text, which screen readers read and which can be copied, and the page is a few hundred kilobytes.
Jinja escapes every text. The page's content security policy forbids all requests.
"""

from __future__ import annotations

from importlib.resources import files

import jinja2

from preprocess.report.describe import Page, Table


def render_page(page: Page) -> str:
    """Return the HTML of `page`."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: files(__package__).joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_number, "bars": list_bars, "is_number": is_number}
    return environment.get_template("page.html").render(page=page)


def is_number(value: str | float) -> bool:
    return not isinstance(value, str)


def format_number(value: str | float, column: str) -> str:
    """Return a cell as text: whole numbers with thousands separators, shares in percent."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value}" if column == "id" else f"{value:,}"
    return f"{value:.2%}" if column == "share" else f"{value:,.2f}"


def list_bars(table: Table) -> list[float]:
    """Return the length of the bar of each row, as a percentage of the longest one; none without bars."""
    if table.bar is None:
        return []
    numbers = [float(row[table.bar]) for row in table.rows]
    longest = max(numbers, default=0) or 1
    return [round(100 * number / longest, 2) for number in numbers]
