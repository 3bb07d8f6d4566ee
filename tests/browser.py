"""Opens pages in headless Chromium."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("REQUIRE_BROWSER"), reason="needs Chromium: apt-get install chromium"
)


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser without extensions, history or traffic of its own."""
    assert CHROMIUM is not None, "REQUIRE_BROWSER is set, but there is no Chromium"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, "--disable-component-update"])
        yield chromium
        chromium.close()


def complaints(page: Page) -> list[str]:
    """What ``page`` will complain of: errors, and its requests to other machines than this."""
    found: list[str] = []
    page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    local = ("http://127.0.0.1", "data:", "blob:", "file:")
    page.on("request", lambda request: None if request.url.startswith(local) else found.append(request.url))
    return found
