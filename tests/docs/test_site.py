"""The site of the pages: it is built without broken links, and opens in a browser without requests to elsewhere.

The browser is Chromium of the system (Debian: `apt install chromium`).
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.slow


class QuietHandler(SimpleHTTPRequestHandler):
    """Serve files, and print nothing."""

    def log_message(self, *_: Any) -> None:
        pass


def build_site(root: Path, output: Path) -> subprocess.CompletedProcess[str]:
    config = root / "docs/site/mkdocs.yml"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(output)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the built site, and return its address."""
    output = tmp_path_factory.mktemp("site")
    built = build_site(ROOT, output)
    assert built.returncode == 0, built.stderr
    handler = functools.partial(QuietHandler, directory=str(output))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_broken_link_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    shutil.copytree(ROOT / "docs/site", tmp_path / "docs/site")
    for page in (ROOT / "docs").glob("*.*"):
        shutil.copy(page, tmp_path / "docs")
    for name in ("README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path)
    with open(tmp_path / "docs/pii.md", "a", encoding="utf-8") as file:
        file.write("\n[a heading that does not exist](filters.md#nothing)\n")
    built = build_site(tmp_path, tmp_path / "out")
    assert built.returncode == 1 and "#nothing" in built.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_pages_open_in_a_browser(site: str) -> None:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.route(
            "**/*",
            lambda route: (
                route.continue_() if route.request.url.startswith(site) else problems.append(route.request.url)
            ),
        )
        page.goto(f"{site}/how_it_works/")
        assert page.locator("h1").inner_text().startswith("How it works")
        picture = page.locator("article img").first
        assert picture.evaluate("image => image.complete && image.naturalWidth > 0") and picture.get_attribute("alt")
        page.goto(f"{site}/settings/")
        assert page.locator("td code", has_text="learning_rate").count() == 3
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        found = Axe().run(page).response["violations"]
        assert not [violation["help"] for violation in found if violation["impact"] == "critical"]
        browser.close()
    assert not problems
