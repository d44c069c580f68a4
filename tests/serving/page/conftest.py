"""Chromium, which is Debian's, without a window; playwright drives it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, FilePayload, Page, expect, sync_playwright

from tests.models import digit_png
from tests.serving.conftest import Service

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

expect.set_options(timeout=20_000)  # two cores may be busy

in_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="NO CHROMIUM HERE: the page was not tested in a browser"
)

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # root has no sandbox
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, service: Service) -> Iterator[Open]:
    """Opens a path in a new window, which may contact only this service and log no error."""
    contexts, strayed, errors = [], [], []

    def open_page(
        path: str = "/", *, fails: bool = False, at: Service = service, **options: Any
    ) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("filechooser", lambda _: None)  # from now on the browser shows no dialog itself
        page.on("request", lambda r: strayed.append(r.url) if not mine(at, r.url) else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        if not fails:  # the browser itself logs an answer of 400 and above
            page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.goto(at.url + path)
        return page

    def mine(service: Service, url: str) -> bool:
        return url.startswith((f"{service.url}/", f"blob:{service.url}/"))

    yield open_page
    for context in contexts:
        context.close()
    assert not strayed
    assert not errors


def png(index: int = 3, name: str = "digit.png") -> FilePayload:
    return {"name": name, "mimeType": "image/png", "buffer": digit_png(index)}


def operation(page: Page, name: str) -> Any:
    """The part of /docs about an operation, with its form open."""
    section = page.get_by_role("region", name=name, exact=True)
    section.locator("summary").click()
    return section
