"""The page in headless Chromium, which is Debian's; playwright drives it."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Error, FilePayload, Page, Route, expect

from labelcurve.serving.api_key import NewKey, make_key
from tests.models import digit_png
from tests.serving.conftest import Service, wait_for
from tests.serving.page.conftest import Open, in_chromium, operation, png

NAMES = ["digits-10", "digits-50", "digits-100"]

pytestmark = in_chromium


def pick(page: Page, file: FilePayload) -> None:
    page.locator("#file").set_input_files(file)


def model(page: Page, name: str) -> Any:
    return page.locator(f'.model[data-model="{name}"]')


def n_labels(described: dict[str, Any]) -> int:
    return int(described["n_labels_train"] + described["n_labels_val"])


def answered(page: Page) -> None:
    expect(page.locator("#models")).to_have_attribute("aria-busy", "false")
    expect(page.locator(".model.waiting")).to_have_count(0)


SEND = """(target, [how, base64, type]) => {
  const data = new DataTransfer();
  if (base64) {
    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    data.items.add(new File([bytes], "sent.png", { type }));
  } else data.setData("text/uri-list", "file:///etc/passwd");
  const options = { bubbles: true, cancelable: true };
  target.dispatchEvent(how === "paste"
    ? new ClipboardEvent("paste", { ...options, clipboardData: data })
    : new DragEvent("drop", { ...options, dataTransfer: data }));
}"""


def send(page: Page, how: str, content: bytes | None) -> None:
    text = base64.b64encode(content).decode() if content else None
    page.locator("body").evaluate(SEND, [how, text, "image/png"])


def test_an_image_is_answered_by_every_model_side_by_side(
    open_page: Open, client: httpx.Client
) -> None:
    page = open_page(viewport={"width": 1280, "height": 900})
    expect(page.locator(".model")).to_have_count(3)
    expect(page.locator("#state")).to_have_text("3 models on the CPU")
    pick(page, png())
    answered(page)
    listed = {m["name"]: m for m in client.get("/models").json()}
    tops = []
    for name in NAMES:
        answer = client.post("/classify", content=digit_png(3), params={"model": name}).json()
        column = model(page, name)
        rows = column.locator(".classes li").all_inner_texts()
        assert [row.split()[0] for row in rows] == [c["label"] for c in answer]
        assert f"{answer[0]['score'] * 100:.1f} %" in rows[0]
        expect(column).to_contain_text(f"{n_labels(listed[name]):,} labels")
        expect(column.locator("[data-figure=accuracy]")).to_have_text(
            f"{listed[name]['test']['accuracy'] * 100:.1f} %"
        )
        for figure in ("server", "trip"):
            expect(column.locator(f"[data-figure={figure}]")).to_contain_text("ms")
        assert listed[name]["version"] in column.inner_text()
        tops.append(column.bounding_box())
    assert len({box["y"] for box in tops}) == 1  # side by side
    expect(page.locator("#verdict")).to_contain_text("All 3 say 3")
    expect(page.locator("#caption")).to_contain_text("digit.png")


def test_doubtful_images_are_a_table_to_label(
    open_page: Open, start_service: Callable[..., Service], digits_models: Path, tmp_path: Path
) -> None:
    page = open_page()
    expect(page.locator("#caption")).to_contain_text("is not kept")
    expect(page.locator("#doubtful")).to_be_hidden()
    keys = tmp_path / "keys"
    key = make_key(NewKey(name="page", file=keys))
    options = ("--accept", "0.999", "--keep-doubtful", str(tmp_path / "kept"))
    service = start_service(digits_models, *options, "--api-keys", str(keys))
    service.wait_until_ready()
    page = open_page(fails=True, at=service)
    page.locator("#secret").fill(key)
    page.locator("#secret").press("Enter")
    expect(page.locator("#doubtful")).to_contain_text("keeps images")
    expect(page.locator("#caption")).not_to_contain_text("is not kept")
    pick(page, png())
    answered(page)
    wait_for(lambda: any((tmp_path / "kept").glob("*.json")))
    with page.expect_download() as download:
        page.get_by_role("button", name="Doubtful images as a table").click()
    assert download.value.suggested_filename == "doubtful.csv"
    header, row = download.value.path().read_text().splitlines()
    assert header == "path,label,sample,reason,guess,probability"
    assert re.fullmatch(r"kept/\w{32}\.png,,chosen,not accepted by digits-\w+@\w+,3,0\.\d+", row)


def test_models_that_disagree_are_quoted(open_page: Open, client: httpx.Client) -> None:
    def top(index: int, name: str) -> str:
        content = digit_png(index)
        answer = client.post("/classify", content=content, params={"model": name, "top_k": 1})
        return str(answer.json()[0]["label"])

    index = next(i for i in range(1437, 1797) if top(i, NAMES[0]) != top(i, NAMES[2]))
    page = open_page()
    pick(page, png(index))
    answered(page)
    expect(page.locator("#verdict")).to_contain_text("They disagree: 10 %")
    expect(page.locator("#verdict")).to_have_text(re.compile(f"100 % says? {top(index, NAMES[2])}"))


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_an_image_can_be_dropped_and_pasted(open_page: Open, how: str) -> None:
    page = open_page()
    send(page, how, digit_png(3))
    answered(page)
    expect(page.locator("#verdict")).to_contain_text("All 3 say 3")
    expect(page.locator("#preview")).to_be_visible()
    expect(page.locator("#preview")).to_have_attribute("alt", "The image: sent.png")


def test_an_address_that_is_dropped_is_not_fetched(open_page: Open) -> None:
    page = open_page()
    send(page, "drop", None)
    expect(page.get_by_role("alert")).to_contain_text("addresses are not fetched")


def test_it_can_be_used_by_keyboard_alone(open_page: Open) -> None:
    page = open_page()
    expect(page.locator(".model")).to_have_count(3)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Choose an image")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(png())
    answered(page)
    page.keyboard.press("Tab")
    expect(page.locator("summary")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("table")).to_be_visible()


def test_a_bad_file_shows_the_problem_as_the_service_put_it(
    open_page: Open, client: httpx.Client
) -> None:
    page = open_page(fails=True)
    pick(page, {**png(), "buffer": b"no image"})
    problem = client.post("/classify", content=b"no image").json()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text(f"{problem['status']} {problem['title']}")
    expect(alert).to_contain_text(problem["detail"])
    expect(page.locator("#caption")).to_contain_text("cannot show it")
    pick(page, png())
    answered(page)
    expect(alert).to_be_hidden()


def test_an_error_of_one_model_is_shown_in_its_column(open_page: Open) -> None:
    page = open_page(fails=True)
    body = '{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"queue full"}'

    def refuse(route: Route) -> None:
        route.fulfill(status=503, content_type="application/problem+json", body=body)

    page.route("**/classify?model=digits-50*", refuse)
    pick(page, png())
    expect(model(page, "digits-50")).to_contain_text("503 Service Unavailable")
    expect(model(page, "digits-50")).to_contain_text("queue full")
    expect(model(page, "digits-50").locator(".classes")).to_be_hidden()
    expect(page.locator("#verdict")).to_contain_text("All 2 say 3")


def test_a_service_that_ended_is_reported(open_page: Open) -> None:
    page = open_page(fails=True)
    expect(page.locator(".model")).to_have_count(3)
    page.route("**/classify*", lambda route: route.abort())
    pick(page, png())
    expect(page.get_by_role("alert")).to_contain_text("The service did not answer")


def test_the_curve_has_a_point_and_an_interval_for_each_model(
    open_page: Open, client: httpx.Client
) -> None:
    page = open_page()
    expect(page.locator("#plot .dot")).to_have_count(3)
    expect(page.locator("#plot .error")).to_have_count(3)
    accuracies = [m["test"]["accuracy"] for m in client.get("/models").json()]
    expect(page.locator("#plot .value")).to_have_text([f"{a * 100:.1f} %" for a in accuracies])
    gain = (accuracies[-1] - accuracies[0]) * 100
    expect(page.locator("#curve-gain")).to_contain_text(f"bought {gain:.1f} points")


def test_of_many_models_some_are_compared_and_all_are_drawn(
    open_page: Open, client: httpx.Client
) -> None:
    listed = client.get("/models").json()
    seeds = [{**m, "name": f"{m['name']}-s1", "default": False} for m in listed]
    others = [{**m, "name": f"other-{m['name']}", "default": False} for m in listed]
    page = open_page("/docs")
    page.route("**/models", lambda route: route.fulfill(json=[*listed, *seeds, *others]))
    page.goto(page.url.removesuffix("docs"))
    expect(page.locator(".model")).to_have_count(3)
    expect(page.locator("#plot .dot")).to_have_count(9)
    expect(page.locator("#plot .line")).to_have_count(2)
    expect(page.locator("#plot .series")).to_have_text(["digits", "other-digits"])
    page.get_by_label("digits-50", exact=True).uncheck()
    expect(page.locator(".model")).to_have_count(2)


def test_models_that_were_swapped_can_still_be_chosen_and_asked(
    open_page: Open, client: httpx.Client
) -> None:
    listed = client.get("/models").json()
    listed += [{**m, "name": f"{m['name']}-s1", "default": False} for m in listed]
    old = [{**m, "version": "0123456789ab", "test": {**m["test"], "accuracy": 0.5}} for m in listed]
    page = open_page("/docs")
    page.route("**/models", lambda route: route.fulfill(json=old))
    page.goto(page.url.removesuffix("docs"))
    expect(page.locator(".model")).to_have_count(3)
    # Answers of other versions make the page ask for the models again; meanwhile comes an image.
    held: list[Route] = []
    page.route("**/models", lambda route: held.append(route))
    with page.expect_request("**/models"):
        pick(page, png())
    page.route("**/classify?model=digits-50&*", lambda route: held.append(route))
    with page.expect_request("**/classify?model=digits-50&*"):
        pick(page, png())
    held[0].fulfill(json=listed)
    expect(model(page, "digits-50").locator("[data-figure=accuracy]")).not_to_have_text("50.0 %")
    held[1].continue_()
    answered(page)
    expect(page.locator("#verdict")).to_contain_text("All 3 say 3")
    page.get_by_label("digits-10", exact=True).uncheck()
    expect(page.locator(".model")).to_have_count(2)


def test_a_file_that_is_gone_is_not_taken_for_a_service_that_is(
    open_page: Open, tmp_path: Path
) -> None:
    page = open_page("/docs", fails=True)
    held: list[Route] = []
    page.route("**/models", lambda route: held.append(route))
    with page.expect_request("**/models"):
        page.goto(page.url.removesuffix("docs"))
    file = tmp_path / "digit.png"
    file.write_bytes(digit_png(3))
    page.locator("#file").set_input_files(file)
    expect(page.locator("#caption")).to_contain_text("px")
    file.unlink()
    held[0].continue_()
    expect(page.get_by_role("alert")).to_contain_text("The file cannot be read")


def of_another_data_set(model: dict[str, Any]) -> dict[str, Any]:
    share = model["name"].rpartition("-")[2]
    more = {"dataset": "photos", "class_names": ["cat", "dog"], "default": False}
    test = {**model["test"], "n": 900}
    return {**model, **more, "name": f"photos-{share}", "test": test}


def show(open_page: Open, models: list[dict[str, Any]], **options: Any) -> Page:
    """The page of a service that has these models."""
    page = open_page("/docs", **options)
    page.route("**/models", lambda route: route.fulfill(json=models))
    page.goto(page.url.removesuffix("docs"))
    return page


def test_several_data_sets_are_each_named(open_page: Open, client: httpx.Client) -> None:
    listed = client.get("/models").json()
    page = show(open_page, [*listed, *map(of_another_data_set, listed)])
    expect(page.locator("#subtitle")).to_have_text(
        "Show an image to the models of digits and photos."
    )
    expect(page.locator("#curve-gain p")).to_have_text(
        [re.compile("^digits: 10 times"), re.compile("^photos: 10 times")]
    )
    expect(page.locator("#curve-ground")).to_contain_text(
        "test images of digits and 900 test images of photos"
    )
    expect(page.locator("#plot .line")).to_have_count(2)
    expect(model(page, "digits-50")).to_contain_text("digits-50, ")


def test_models_of_several_data_sets_need_not_agree(open_page: Open, client: httpx.Client) -> None:
    listed = client.get("/models").json()
    page = show(open_page, [*listed[1:], of_another_data_set(listed[2])])

    def cat(route: Route) -> None:
        version = {"x-model-version": listed[2]["version"]}
        route.fulfill(json=[{"label": "cat", "score": 0.8}], headers=version)

    page.route("**/classify?model=photos*", cat)
    expect(page.locator(".model")).to_have_count(3)
    pick(page, png())
    answered(page)
    expect(page.locator("#verdict")).to_have_text(
        re.compile(r"^digits: All 2 say 3; .* sure\. photos-100 says cat, 80\.0 % sure\.$")
    )


def test_a_final_model_is_shown_and_is_no_point_of_the_curve(
    open_page: Open, client: httpx.Client
) -> None:
    listed = client.get("/models").json()
    last = {**listed[2], "name": "digits-final", "measured": "digits-100", "default": True}
    page = show(open_page, [*[{**m, "default": False} for m in listed], last])
    expect(page.locator("#plot .dot")).to_have_count(3)
    expect(page.locator("#plot .series")).to_have_count(0)
    shown = page.locator(".model[data-model=digits-final]")
    expect(shown).to_contain_text("digits-final, ")
    expect(shown.locator("[title$='test images, of digits-100']")).to_have_count(1)
    expect(page.locator("[title$='of digits-100']")).to_have_count(1)


def test_one_model_has_no_curve(open_page: Open, client: httpx.Client) -> None:
    (only,) = [m for m in client.get("/models").json() if m["name"] == "digits-100"]
    page = show(open_page, [only])
    expect(page.locator("#subtitle")).to_have_text("Show an image to digits-100.")
    expect(page.locator("#curve-title")).to_have_text("Accuracy")
    accuracy = f"{only['test']['accuracy'] * 100:.1f} % with {n_labels(only):,} labels."
    expect(page.locator("#curve-gain")).to_have_text(accuracy)
    expect(page.locator("#plot")).to_be_hidden()
    expect(page.get_by_role("table")).to_be_visible()


@pytest.mark.parametrize("width", [390, 1280])
def test_no_empty_blocks_stand_below_an_error(open_page: Open, width: int) -> None:
    page = open_page(fails=True, viewport={"width": width, "height": 900})
    expect(page.locator(".classes").first).to_be_visible()
    pick(page, {**png(), "buffer": b"no image"})
    expect(page.get_by_role("alert")).to_be_visible()
    for block in page.locator(":is(.classes, .figures)").all():
        expect(block).to_be_hidden()
    expect(model(page, "digits-50")).to_be_visible()
    pick(page, png())
    answered(page)
    expect(page.locator(".classes").first).to_be_visible()


def test_a_version_that_was_refused_is_shown_with_its_error(
    open_page: Open, client: httpx.Client
) -> None:
    listed = client.get("/models").json()
    listed[0]["refused"] = {"name": "digits-10", "version": "0123456789ab", "error": "<b>broken"}
    page = open_page("/docs")
    page.route("**/models", lambda route: route.fulfill(json=listed))
    page.goto(page.url.removesuffix("docs"))
    expect(model(page, "digits-10")).to_contain_text("Version 0123456789ab is refused: <b>broken")
    expect(page.locator(".refused")).to_have_count(1)


def test_a_key_is_asked_for_where_one_is_needed(
    open_page: Open, start_service: Callable[..., Service], digits_models: Path, tmp_path: Path
) -> None:
    key = make_key(NewKey("page", tmp_path / "keys", rate=1))
    service = start_service(digits_models, "--api-keys", str(tmp_path / "keys"))
    service.wait_until_ready()
    page = open_page(fails=True, at=service)
    expect(page.get_by_role("alert")).to_contain_text("401 Unauthorized")
    page.get_by_label("This service asks for an API key").fill("schl€ssel")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("That is not an API key")
    page.get_by_label("This service asks for an API key").fill(key)
    page.keyboard.press("Enter")
    expect(page.locator(".model")).to_have_count(3)
    expect(page.get_by_role("alert")).to_be_hidden()
    pick(page, png())
    answered(page)  # three requests, although the key may send one in a second


@pytest.mark.parametrize("path", ["/", "/docs"])
@pytest.mark.parametrize("width", [320, 390])
def test_nothing_is_wider_than_a_phone(open_page: Open, path: str, width: int) -> None:
    page = open_page(
        path, fails=True, viewport={"width": width, "height": 700}, is_mobile=True, has_touch=True
    )

    def fits() -> None:
        assert page.locator("html").evaluate("e => e.scrollWidth") == width

    if path == "/docs":
        expect(page.locator(".operation").first).to_be_visible()
        fits()
        return
    expect(page.locator(".model")).to_have_count(3)
    fits()
    pick(page, png(name="a-rather-long-name-without-any-place-to-break-it-" * 3 + ".png"))
    answered(page)
    page.locator("summary").tap()
    fits()
    pick(page, {**png(), "buffer": b"no image"})
    expect(page.get_by_role("alert")).to_be_visible()
    fits()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/", "/docs"])
def test_axe_finds_nothing_in_light_or_dark(open_page: Open, path: str, scheme: str) -> None:
    page = open_page(path, color_scheme=scheme, bypass_csp=True, fails=True)  # axe is injected
    channels = page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor")
    assert (sum(map(int, channels[4:-1].split(","))) > 380) is (scheme == "light")
    if path == "/":
        pick(page, png())
        answered(page)
        page.locator("summary").click()
    else:
        section = operation(page, "POST /classify")
        section.get_by_label("body: a file").set_input_files(png())
        section.get_by_role("button", name="Send").press("Enter")
        expect(section.get_by_role("status")).to_contain_text("200 OK")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_readers_who_want_no_motion_get_none(open_page: Open) -> None:
    moving = "e => getComputedStyle(e).transitionDuration"
    for wish, duration in (("no-preference", "0.4s"), ("reduce", "0s")):
        page = open_page(reduced_motion=wish)
        assert page.locator(".fill").first.evaluate(moving) == duration


def test_the_policy_is_in_force(open_page: Open) -> None:
    page = open_page(fails=True)
    with pytest.raises(Error, match="TrustedScript"):
        page.add_script_tag(content="window.injected = true")
