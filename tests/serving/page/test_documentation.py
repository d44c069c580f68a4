"""The page at /docs in headless Chromium."""

from __future__ import annotations

import json

import httpx
from playwright.sync_api import expect

from tests.models import digit_png
from tests.serving.page.conftest import Open, in_chromium, operation, png

pytestmark = in_chromium


def test_the_documentation_describes_every_operation(open_page: Open, client: httpx.Client) -> None:
    page = open_page("/docs")
    paths = client.get("/openapi.json").json()["paths"]
    expect(page.locator(".operation")).to_have_count(sum(map(len, paths.values())))
    for path, methods in paths.items():
        for method in methods:
            section = page.get_by_role("region", name=f"{method.upper()} {path}", exact=True)
            expect(section).to_contain_text("Example")
            for status in methods[method]["responses"]:
                expect(section).to_contain_text(status)


def test_an_operation_can_be_tried(open_page: Open, client: httpx.Client) -> None:
    page = open_page("/docs")
    section = operation(page, "POST /classify")
    section.get_by_label("body: a file").set_input_files(png())
    section.get_by_label("model").fill("digits-50")
    section.get_by_label("top_k").fill("2")
    section.get_by_role("button", name="Send").press("Enter")
    expect(section.get_by_role("status")).to_contain_text("200 OK")
    expect(section.get_by_label("Headers of the answer")).to_contain_text("x-model-name: digits-50")
    shown = section.get_by_label("Body of the answer").inner_text()
    asked: dict[str, str | int] = {"model": "digits-50", "top_k": 2}
    assert shown == json.dumps(
        client.post("/classify", content=digit_png(3), params=asked).json(), indent=2
    )
    for name, text in (("GET /livez", "live"), ("GET /models", "digits-100"), ("GET /", "links")):
        section = operation(page, name)
        section.get_by_role("button", name="Send").press("Enter")
        expect(section.get_by_label("Body of the answer")).to_contain_text(text)


def test_a_json_body_begins_with_an_example(open_page: Open) -> None:
    page = open_page("/docs")
    section = operation(page, "POST /v2/models/{name}/infer")
    expect(section).to_contain_text("curl -H 'Content-Type: application/json' -d '{\"inputs\":")
    section.get_by_label("name", exact=True).fill("digits-50")
    section.get_by_role("button", name="Send").click()
    expect(section.get_by_role("status")).to_contain_text("200 OK")
    expect(section.get_by_label("Body of the answer")).to_contain_text("probabilities")


def test_what_is_tried_in_vain_shows_the_problem(open_page: Open) -> None:
    page = open_page("/docs", fails=True)
    section = operation(page, "POST /classify")
    section.get_by_label("body: a file").set_input_files({**png(), "buffer": b"no image"})
    section.get_by_role("button", name="Send").press("Enter")
    expect(section.get_by_role("status")).to_contain_text("415 Unsupported Media Type")
    expect(section.get_by_label("Body of the answer")).to_contain_text("not an image")
    page.route("**/classify*", lambda route: route.abort())
    section.get_by_role("button", name="Send").press("Enter")
    expect(section.get_by_role("status")).to_contain_text("No answer")
