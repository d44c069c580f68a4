"""The page for people as a browser gets it; what it does there is in test_browser.py."""

from __future__ import annotations

import re

import httpx
import pytest

from labelcurve.serving.page import FOLDER, MEDIA_TYPES, wants_html

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
FILES = sorted(path.name for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES)


def path_of(name: str) -> str:
    return {"index.html": "/", "docs.html": "/docs"}.get(name, f"/page/{name}")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (BROWSER["accept"], True),
        ("text/html", True),
        ("text/html;q=0.9, application/json;q=0.5", True),
        ("application/json, text/html;q=0.5", False),
        ("application/json", False),
        ("*/*", False),
        ("", False),
        ("text/html;q=0", False),
        ("text/html;q=x", False),
        ("text/html, application/json", False),
    ],
)
def test_only_clients_that_prefer_html_get_the_page(accept: str, expected: bool) -> None:
    assert wants_html(accept) is expected


def test_the_root_is_json_for_programs_and_a_page_for_browsers(client: httpx.Client) -> None:
    for headers, kind in (({}, "application/json"), (BROWSER, "text/html; charset=utf-8")):
        response = client.get("/", headers=headers)
        assert response.headers["content-type"] == kind
        assert response.headers["vary"] == "Accept"


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_kept_by_clients_until_it_changes(client: httpx.Client, name: str) -> None:
    first = client.get(path_of(name), headers=BROWSER)
    assert first.content == (FOLDER / name).read_bytes()
    assert first.headers["content-type"] == MEDIA_TYPES[f".{name.rpartition('.')[2]}"]
    assert first.headers["x-content-type-options"] == "nosniff"
    tag = first.headers["etag"]
    for known in (tag, f'"other", W/{tag}'):
        again = client.get(path_of(name), headers={**BROWSER, "if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    changed = client.get(path_of(name), headers={**BROWSER, "if-none-match": '"other"'})
    assert changed.status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_may_load_nothing_inline_and_nothing_from_elsewhere(
    client: httpx.Client, path: str
) -> None:
    response = client.get(path, headers=BROWSER)
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "//" not in policy
    assert not re.search(r"<style|style=| on\w+=|<script(?! type=\"module\" src=)", response.text)


@pytest.mark.parametrize("name", FILES)
def test_no_file_names_another_host(name: str) -> None:
    text = (FOLDER / name).read_text().replace("http://www.w3.org/2000/svg", "")
    assert "//" not in re.sub(r"^\s*//.*$|; // .*$|\) // .*$", "", text, flags=re.MULTILINE)


def test_every_file_that_a_page_names_is_there(client: httpx.Client) -> None:
    for name in FILES:
        text = (FOLDER / name).read_text()
        for target in re.findall(r'(?:href|src)="(page/[^"]+)"', text):
            assert client.get(f"/{target}").status_code == 200, target
        for target in re.findall(r'from "\./([^"]+)"', text):
            assert client.get(f"/page/{target}").status_code == 200, target


@pytest.mark.parametrize("path", ["/page/", "/page/__init__.py", "/page/../app.py", "/page/x.js"])
def test_nothing_else_of_the_folder_is_answered(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404
