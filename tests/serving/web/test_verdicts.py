"""Answers that are accepted, and sets of classes, over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from labelcurve.bundle import store
from labelcurve.serving.errors import Problem
from labelcurve.serving.models.model import open_model
from labelcurve.serving.models.verdict import Wish
from labelcurve.serving.web.query import Query, parse
from labelcurve.serving.web.verdicts import Verdicts
from tests.models import digit_png
from tests.serving.conftest import Service
from tests.serving.models.test_engine import CPU
from tests.serving.web.test_openapi import check


def test_without_a_wish_an_answer_is_as_it_was(client: httpx.Client) -> None:
    response = client.post("/classify", content=digit_png(0))
    assert isinstance(response.json(), list)
    assert "x-accepted" not in response.headers


def test_several_images_have_a_verdict_each(client: httpx.Client) -> None:
    files = [("images", digit_png(i)) for i in range(1437, 1497)]
    response = client.post("/classify", files=files, params={"accept": 0.95, "top_k": 1})
    answers = response.json()
    said = [answer["accepted"] for answer in answers]
    assert set(said) == {True, False}
    assert response.headers["x-accepted"] == ", ".join("true" if one else "false" for one in said)
    assert all(answer.keys() == {"classes", "accepted"} for answer in answers)
    sets = client.post("/classify", files=files, params={"set": 0.9, "top_k": 1})
    assert "x-accepted" not in sets.headers
    assert {len(answer["set"]) for answer in sets.json()} >= {1, 2}
    document = client.get("/openapi.json").json()
    for each in (response, sets):
        check(document, each)


def test_what_the_model_cannot_show_is_409_with_what_it_takes(client: httpx.Client) -> None:
    response = client.post("/classify", content=digit_png(0), params={"accept": 0.999})
    assert response.status_code == 409
    assert "needs at least 2,995 held-out images" in response.json()["detail"]
    check(client.get("/openapi.json").json(), response)


def test_a_service_says_of_each_answer_whether_it_is_accepted(
    start_service: Callable[..., Service], digits_models: Path
) -> None:
    service = start_service(digits_models, "--accept", "0.95")
    service.wait_until_ready()
    assert "accept   digits-100: " in service.output
    with httpx.Client(base_url=service.url, timeout=30) as client:
        held = store.read(digits_models, "digits-100").manifest.held_out
        assert held is not None
        said = set()
        for i in range(1437, 1497):
            response = client.post("/classify", content=digit_png(i))
            said.add(response.headers["x-accepted"])
            assert isinstance(response.json(), list), "the body of other clients stays as it is"
        assert said == {"true", "false"}
        asked = client.post("/classify", content=digit_png(0), params={"set": 0.9})
        assert asked.headers["x-accepted"] in said
        assert asked.json().keys() == {"classes", "set"}


def test_where_nothing_can_be_accepted_the_service_says_so_and_accepts_nothing(
    start_service: Callable[..., Service], digits_models: Path
) -> None:
    service = start_service(digits_models, "--accept", "0.999")
    service.wait_until_ready()
    assert "accept   digits-100: nothing; accepting with 99.9 % accuracy needs" in service.output
    answer = httpx.post(f"{service.url}/classify", content=digit_png(0), timeout=30)
    assert answer.headers["x-accepted"] == "false"


def test_an_invalid_accuracy_is_refused_at_the_start(
    start_service: Callable[..., Service], digits_models: Path
) -> None:
    service = start_service(digits_models, "--accept", "98")
    assert service.process.wait(30) == 1
    assert "--accept 98: allowed are 0.5 to 0.9999" in service.output


def test_the_parameters() -> None:
    assert parse(b"") == Query()
    assert parse(b"accept=0.98&set=.95&top_k=2&model=x") == Query("x", 2, Wish(0.98, 0.95))
    assert parse(b"accept=0.5&set=0.9999").wish == Wish(0.5, 0.9999)
    assert parse(b"top_k=999999999").top_k == 999_999_999
    for text, says in (
        (b"accept=1", r"accept='1': a share from 0.5 to 0.9999"),
        (b"set=nan", "set='nan'"),
        (b"accept=", "accept=''"),
        (b"accept=0.4999", "accept='0.4999'"),
        (b"set=0.99991", "set='0.99991'"),
        (b"top_k=1000000000", "from 1 to 999999999"),
        (b"accept=0.9&accept=0.9", "given 2 times"),
        (b"accepted=0.9", "allowed are model, top_k, accept and set"),
    ):
        with pytest.raises(Problem, match=says):
            parse(text)


def test_what_a_request_asks_for_goes_before_what_the_service_was_started_with(
    digits_models: Path,
) -> None:
    model = open_model(store.read(digits_models, "digits-100"), CPU, 1, 8)
    model.batcher.close()
    service, none = Verdicts(0.95), Verdicts(None)
    own = model.rule(Wish(accept=0.95))
    assert none.of(model, Wish()) is None
    plain = service.of(model, Wish())
    assert plain is not None
    assert (plain.asked, plain.accepting, plain.header) == (None, own, True)
    named = service.of(model, Wish(accept=0.6))
    assert named is not None
    assert named.asked == named.accepting == model.rule(Wish(accept=0.6)) != own
    sets = service.of(model, Wish(set=0.9))
    assert sets is not None
    assert (sets.asked, sets.accepting) == (model.rule(Wish(set=0.9)), own)
    alone = none.of(model, Wish(set=0.9))
    assert alone is not None
    row = np.eye(10, dtype=np.float32)[3]
    assert (alone.header, alone.headers([row]), alone.accepted(row)) == (False, [], False)
    assert plain.accepted(row)
    assert plain.headers([row, row * 0]) == [(b"x-accepted", b"true, false")]
