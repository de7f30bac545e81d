"""The page of runs in a browser: charts, controls by pointer and keyboard, and what a screen reader needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.preprocess.report.test_browser import CHROMIUM, SIZES, browser, column, open_page  # noqa: F401 (a fixture)
from tests.train.reporting.helpers import write_run
from train.reporting.watch import write_page

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [write_run(folder / "first"), write_run(folder / "second <b>", loss=2.5, num_steps=20, learning_rate=5e-3)]


@pytest.fixture
def page_file(folders: list[Path], tmp_path: Path) -> Path:
    write_page(folders, ["first", "second <b>"], tmp_path / "page.html")
    return tmp_path / "page.html"


def lines(page: Any, chart: str) -> list[str]:
    return page.locator(f"[data-chart={chart}] .series").evaluate_all("all => all.map(e => e.getAttribute('d'))")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_opens_without_errors_requests_and_barriers(
    browser: Any,  # noqa: F811
    page_file: Path,
    size: str,
    scheme: str,
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page, problems = open_page(browser, page_file, size=size, scheme=scheme)
    assert page.locator("h1").inner_text() == "first, second <b>"
    assert len(lines(page, "loss")) == 4 and len(lines(page, "memory")) == 2
    assert all(line.count("L") == 39 for line in lines(page, "gradient")[:1])
    label = page.locator("[data-chart=loss]").get_attribute("aria-label")
    assert "Loss, nats per token, against steps. first, training loss: from 2.9017 to 0.79079" in label
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    found = Axe().run(page).response["violations"]
    assert not [violation["help"] for violation in found if violation["impact"] in ("serious", "critical")]
    assert not problems
    page.close()


def test_controls_change_the_charts_by_keyboard_and_pointer(browser: Any, page_file: Path) -> None:  # noqa: F811
    page, problems = open_page(browser, page_file)
    before = lines(page, "loss")
    page.locator("#smoothing").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert page.locator("[data-chart=loss] .pale").count() == 2 and len(lines(page, "loss")) == 6
    page.locator("#axis").focus()
    page.keyboard.press("ArrowDown")
    assert "Values after 5,120 tokens" in page.locator("#values caption").inner_text()
    assert "5000" in page.locator("[data-chart=rate]").text_content()
    page.locator("#log-x").press("Space")
    page.locator("#log-y").press("Space")
    assert len(lines(page, "loss")) == 6 and lines(page, "loss")[0] != before[0]
    page.locator("#axis").select_option("seconds")
    assert "of training" in page.locator("[data-chart=loss]").get_attribute("aria-label")
    page.locator("[data-run='1']").press("Space")
    assert len(lines(page, "memory")) == 1 and page.locator("#values tbody tr").count() == 1
    page.locator("#axis").select_option("step")
    page.locator("#log-x").press("Space")
    page.locator("#position").press("Home")
    assert page.locator("#values caption").inner_text() == "Values at step 0"
    assert page.locator("#values tbody td").nth(1).inner_text() == "3"  # the validation loss before the first step
    box = page.locator("[data-chart=loss]").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 100)
    assert page.locator("#values caption").inner_text() == "Values at step 19"
    assert not problems
    page.close()


def test_settings_are_sorted_and_filtered(browser: Any, page_file: Path) -> None:  # noqa: F811
    page, problems = open_page(browser, page_file)
    assert page.locator("#table-settings tr.marked").count() == 2
    page.locator("#table-settings thead button").first.press("Enter")
    names = column(page, "settings", 1)
    assert names == sorted(names) and len(names) > 30
    page.locator("[data-filter=table-settings]").fill("differs")
    assert sorted(column(page, "settings", 1)) == ["learning_rate", "out_dir"]
    page.locator("#table-steps thead button").nth(4).click()
    losses = [float(text) for text in column(page, "steps", 5)]
    assert losses == sorted(losses, reverse=True) and not problems
    page.close()


def test_watched_page_loads_itself_again_and_keeps_the_choices(
    browser: Any,  # noqa: F811
    folders: list[Path],
    tmp_path: Path,
) -> None:
    from playwright.sync_api import expect

    path = tmp_path / "page.html"
    write_page(folders[:1], ["first"], path, reload_s=2)
    page, problems = open_page(browser, path)
    page.locator("#axis").select_option("tokens")
    page.locator("[data-filter=table-settings]").fill("n_")
    write_page(folders, ["first", "second"], path, reload_s=2)
    expect(page.locator("h1")).to_have_text("first, second")
    expect(page.locator("#axis")).to_have_value("tokens")  # waits for the script of the new page
    page.locator("#pause").check()
    write_page(folders[:1], ["first"], path)
    page.wait_for_timeout(3500)
    assert page.locator("h1").inner_text() == "first, second"
    page.locator("#pause").uncheck()
    expect(page.locator("h1")).to_have_text("first")
    assert not problems and page.locator("#pause").count() == 0
    page.close()
