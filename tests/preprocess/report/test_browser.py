"""The page of a build in a browser: charts, sorting, filtering, and what a screen reader needs.

The browser is Chromium of the system (Debian: `apt install chromium`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from preprocess.pages.render import render_page
from preprocess.report.compare import describe_comparison
from preprocess.shards.format import Build
from tests.preprocess.report.test_compare import make_builds
from tests.preprocess.report.test_report import HOSTILE, render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SIZES = {"phone": (390, 844), "desktop": (1280, 900)}
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page_file(build_text: Callable[..., Build], tmp_path: Path) -> Path:
    text = "".join(f"{HOSTILE} line {i} of {i % 7}:{' word' * (i % 50)}\n" for i in range(300))
    settings: dict[str, Any] = {"clean": (), "author": "Ann", "lang": "en", "filters": ("word_count:min_words=20",)}
    build = build_text(text + text[-2_000:], document="line", dedup=True, split="exact", val_fraction=0.2, **settings)
    path = tmp_path / "page.html"
    path.write_text(render(build), encoding="utf-8")
    return path


def open_page(browser: Any, path: Path, *, size: str = "desktop", scheme: str = "light") -> tuple[Any, list[str]]:
    """Return the opened page, and a list to which its console errors and requests are added."""
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: problems.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(path.as_uri())
    return page, problems


def column(page: Any, table: str, number: int) -> list[str]:
    cells = page.locator(f"#table-{table} tbody tr:visible td:nth-child({number})")
    return [text.strip() for text in cells.all_inner_texts()]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_opens_without_errors_requests_and_barriers(browser: Any, page_file: Path, size: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page, problems = open_page(browser, page_file, size=size, scheme=scheme)
    assert page.locator("h1").inner_text() == "own"
    bars = page.locator("#table-funnel .bar").evaluate_all("all => all.map(e => getComputedStyle(e).backgroundImage)")
    assert len(bars) > 2 and all("gradient" in bar for bar in bars)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.locator("#duplicates").count() == 1
    page.locator("details").evaluate_all("all => all.forEach(e => { e.open = true })")
    found = Axe().run(page).response["violations"]
    assert not [violation["help"] for violation in found if violation["impact"] in ("serious", "critical")]
    assert not problems
    page.close()


def test_tables_are_sorted_by_click_and_by_keyboard(browser: Any, page_file: Path) -> None:
    page, problems = open_page(browser, page_file)
    head = page.locator("#table-tokens thead th").nth(2)
    head.locator("button").click()
    numbers = [int(text.replace(",", "")) for text in column(page, "tokens", 3)]
    assert numbers == sorted(numbers, reverse=True) and head.get_attribute("aria-sort") == "descending"
    head.locator("button").focus()
    page.keyboard.press("Enter")
    numbers = [int(text.replace(",", "")) for text in column(page, "tokens", 3)]
    assert numbers == sorted(numbers) and head.get_attribute("aria-sort") == "ascending" and len(set(numbers)) > 5
    page.locator("#table-recipe thead th").nth(0).locator("button").press("Space")
    names = column(page, "recipe", 1)
    assert names == sorted(names) and not problems
    page.close()


def test_rows_are_filtered_while_typing(browser: Any, page_file: Path) -> None:
    page, problems = open_page(browser, page_file)
    num_rows = len(column(page, "recipe", 1))
    page.get_by_label("Rows that contain").last.focus()
    page.keyboard.type("VAL_frac")
    assert column(page, "recipe", 1) == ["val_fraction"]
    assert page.locator("#status-recipe").inner_text() == f"1 of {num_rows} rows"
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    assert len(column(page, "recipe", 1)) == num_rows and not problems
    page.close()


def test_page_of_two_builds_opens_without_errors_requests_and_barriers(
    browser: Any, build_text: Callable[..., Build], tmp_path: Path
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    a, b = make_builds(build_text)
    path = tmp_path / "page.html"
    path.write_bytes(render_page(describe_comparison(a, b), "preprocess.report", "comparison.html"))
    page, problems = open_page(browser, path, size="phone", scheme="dark")
    assert page.locator("h1").inner_text() == "a and b"
    assert page.locator("#table-lengths-train .bar").count() > 3 and page.locator("tr.marked").count() > 3
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    found = Axe().run(page).response["violations"]
    assert not [violation["help"] for violation in found if violation["impact"] in ("serious", "critical")]
    page.locator("[data-filter=table-settings]").fill("val_fr")
    assert column(page, "settings", 1) == ["recipe.val_fraction"] and not problems
    page.close()
