from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPResponse
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image

from labelcurve.bundle.preprocess import MAX_BYTES, MAX_PIXELS
from labelcurve.serving.errors import Overloaded, Problem
from labelcurve.serving.models.decoder import INLINE_BYTES, INLINE_PIXELS, MAX_MEMORY
from labelcurve.serving.web import request
from labelcurve.serving.web.multipart import MAX_PARTS
from tests.models import digit_png

PNG = digit_png(3)
BOUNDARY = "x" * 20


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert body["detail"]
    return body


def inputs(data: bytes, **parameters: Any) -> dict[str, Any]:
    return {"inputs": base64.b64encode(data).decode(), "parameters": parameters}


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    file = BytesIO()
    image.save(file, form)
    return file.getvalue()


def part(name: str, data: bytes, filename: str = "a.png") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"'
    return head.encode() + b"\r\n\r\n" + data + b"\r\n"


def post_form(client: httpx.Client, body: bytes, boundary: str = BOUNDARY) -> httpx.Response:
    return client.post(
        "/classify",
        content=body,
        headers={"content-type": f"multipart/form-data; boundary={boundary}"},
    )


@pytest.fixture
def listener() -> Iterator[tuple[str, list[object]]]:
    """A URL on loopback, and the connections that were made to it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        seen: list[object] = []

        def accept() -> None:
            while True:
                try:
                    connection, peer = server.accept()
                except OSError:
                    return
                connection.close()
                seen.append(peer)

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/a.png", seen
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "content_type",
    [None, "image/png", "image/jpeg", "application/octet-stream", "text/plain", "nonsense",
     "application/x-www-form-urlencoded"],
)  # fmt: skip
def test_raw_bytes_with_any_content_type(client: httpx.Client, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    response = client.post("/classify", content=PNG, headers=headers)
    assert response.status_code == 200
    assert response.json()[0]["label"] == "3"


def test_json_without_a_content_type_is_json(client: httpx.Client) -> None:
    response = client.post("/classify", content=json.dumps(inputs(PNG)).encode())
    assert response.json()[0]["label"] == "3"
    assert "base64" in problem(client.post("/classify", content=b'{"inputs": 1'), 400)["detail"]
    named = {"content-type": "image/png"}
    problem(client.post("/classify", content=b'{"inputs": "aGk="}', headers=named), 415)


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip"])
def test_an_encoded_body_is_refused_by_name(client: httpx.Client, encoding: str) -> None:
    response = client.post("/classify", content=PNG, headers={"content-encoding": encoding})
    assert encoding in problem(response, 415)["detail"]
    assert response.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("path", ["/classify", "/v2/models/digits-100/infer"])
def test_no_encoding_is_overlooked_behind_another(client: httpx.Client, path: str) -> None:
    headers = [("content-encoding", "identity"), ("content-encoding", "gzip")]
    response = client.post(path, content=PNG, headers=headers)
    assert "identity, gzip" in problem(response, 415)["detail"]
    plain = client.post("/classify", content=PNG, headers=headers[:1])
    assert plain.status_code == 200


@pytest.mark.parametrize("query", ["topk=1", "model=digits-10&k=1", "top_k=1&top_k=2"])
def test_query_parameters_that_mean_nothing_are_refused(client: httpx.Client, query: str) -> None:
    problem(client.post(f"/classify?{query}", content=PNG), 400)


def test_every_way_gives_the_same_answer(client: httpx.Client) -> None:
    raw = client.post("/classify", content=PNG).json()
    assert client.post("/classify", json=inputs(PNG)).json() == raw
    assert client.post("/classify", files={"image": PNG}).json() == raw
    assert client.post("/classify", files={"image": ("a.bin", PNG, "text/plain")}).json() == raw
    assert client.post("/classify", files=[("images", PNG)]).json() == [raw]


def test_several_images_give_a_list_for_each(client: httpx.Client) -> None:
    answers = client.post(
        "/classify", files=[("images", digit_png(i)) for i in (1, 2, 3)], params={"top_k": 1}
    ).json()
    assert [[c["label"] for c in answer] for answer in answers] == [["1"], ["2"], ["3"]]


def test_top_k_of_the_json_body_goes_before_the_url(client: httpx.Client) -> None:
    body = inputs(PNG, top_k=2, function_to_apply="softmax")
    assert len(client.post("/classify", json=body, params={"top_k": 4}).json()) == 2
    assert len(client.post("/classify", json=inputs(PNG), params={"top_k": 4}).json()) == 4


def test_an_empty_body_is_malformed(client: httpx.Client) -> None:
    assert "empty" in problem(client.post("/classify"), 400)["detail"]
    assert "empty" in problem(client.post("/classify", json={"inputs": ""}), 400)["detail"]
    assert "empty" in problem(client.post("/classify", files={"image": b""}), 400)["detail"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "the body"),
        (b"[]", "the body"),
        (b"\xff\xfe", "the body"),
        (b"{}", "inputs: Field required"),
        (b'{"inputs": 1}', "inputs"),
        (b'{"inputs": "a", "model": "x"}', "model"),
        (b'{"inputs": "***"}', "not base64"),
        (b'{"inputs": "data:image/png;base64,aGk="}', "data URL"),
        (b'{"inputs": "aGk"}', "not base64"),
        ('{"inputs": "é"}'.encode(), "not base64"),
        (b'{"inputs": "aGk=", "parameters": {"top_k": 0}}', "parameters.top_k"),
        (b'{"inputs": "aGk=", "parameters": {"top_k": true}}', "parameters.top_k"),
        (b'{"inputs": "aGk=", "parameters": {"temperature": 2}}', "parameters.temperature"),
        (b'{"inputs": "aGk=", "parameters": {"function_to_apply": "none"}}', "function_to_apply"),
        (b"[" * 8, "the body"),
        (b"[" * 100_000, "more than 8 [: too many arrays"),
        (b'{"inputs": ""' + b', "k": 1' * 100 + b"}", 'more than 64 ": too many strings'),
        (b'{"inputs": ' + b"{" * 100, "more than 8 {: too many objects"),
        (b'{"inputs": "", "' + b"k" * 1_000 + b'": 1}', f"{'k' * 80}: Extra inputs"),
    ],
)
def test_malformed_json(client: httpx.Client, body: bytes, says: str) -> None:
    response = client.post(
        "/classify", content=body, headers={"content-type": "application/json; charset=utf-8"}
    )
    assert says in problem(response, 400)["detail"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "truncated"),
        (b"no multipart", "malformed"),
        (part("image", PNG), "truncated"),
        (f"--{BOUNDARY}--\r\n".encode(), "has the fields []"),
        (part("file", PNG) + f"--{BOUNDARY}--\r\n".encode(), "has the fields ['file']"),
        (part("x" * 3000, PNG) * 60 + f"--{BOUNDARY}--\r\n".encode(), f"{'x' * 80}']: send"),
        (part("image", PNG) * 2 + f"--{BOUNDARY}--\r\n".encode(), "one `image`"),
        (part("image", PNG) + part("images", PNG) + f"--{BOUNDARY}--\r\n".encode(), "one `image`"),
        (part("image", PNG, "x" * 9000) + f"--{BOUNDARY}--\r\n".encode(), "header size"),
        (part("é", PNG).replace("é".encode(), b"\xe9") + f"--{BOUNDARY}--\r\n".encode(), ""),
    ],
)
def test_malformed_forms(client: httpx.Client, body: bytes, says: str) -> None:
    assert says in problem(post_form(client, body), 400)["detail"]


def test_a_form_needs_a_boundary(client: httpx.Client) -> None:
    headers = {"content-type": "multipart/form-data"}
    response = client.post("/classify", content=b"x", headers=headers)
    assert "boundary" in problem(response, 400)["detail"]


def test_a_form_has_a_limit_of_parts(client: httpx.Client) -> None:
    end = f"--{BOUNDARY}--\r\n".encode()
    assert post_form(client, part("images", PNG) * MAX_PARTS + end).status_code == 200
    problem(post_form(client, part("images", PNG) * (MAX_PARTS + 1) + end), 413)


def test_an_announced_body_that_is_too_large_is_not_read(client: httpx.Client) -> None:
    port = client.base_url.port
    assert port is not None
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BYTES + 1}\r\n\r\n"
        connection.sendall(head.encode())
        answer = HTTPResponse(connection)
        answer.begin()
        assert answer.status == 413
        body = json.load(answer)
    assert (body["found"], body["allowed"]) == (MAX_BYTES + 1, MAX_BYTES)


def test_a_body_of_unknown_length_is_read_up_to_the_limit(client: httpx.Client) -> None:
    chunks = (bytes(2**20) for _ in range(MAX_BYTES // 2**20 + 2))
    body = problem(client.post("/classify", content=chunks), 413)
    assert MAX_BYTES < body["found"] <= MAX_BYTES + 2**20


def test_base64_does_not_lower_the_limit(client: httpx.Client) -> None:
    padded = PNG + bytes(MAX_BYTES - len(PNG))
    assert client.post("/classify", json=inputs(padded)).status_code == 200
    problem(client.post("/classify", json=inputs(padded + bytes(3))), 413)


def test_images_that_cannot_be_used(client: httpx.Client) -> None:
    problem(client.post("/classify", content=b"not an image"), 415)
    problem(client.post("/classify", content=encoded(Image.new("RGB", (8, 8)), "TIFF")), 415)
    large = encoded(Image.new("1", (MAX_PIXELS // 5000 + 1, 5000)))
    assert len(large) < INLINE_BYTES
    body = problem(client.post("/classify", content=large), 413)
    assert f"{MAX_PIXELS:,} allowed" in body["detail"]
    assert (body["found"], body["allowed"]) == ((MAX_PIXELS // 5000 + 1) * 5000, MAX_PIXELS)
    photo = encoded(Image.new("RGB", (4000, 3000)), "WEBP")
    body = problem(client.post("/classify", content=photo), 413)
    assert (body["found"], body["allowed"]) == (17 * 4000 * 3000, MAX_MEMORY)
    assert "take 204 MB to decode: at most 170 MB are allowed" in body["detail"]
    photo = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "PNG")
    problem(client.post("/classify", content=photo[: len(photo) // 2]), 422)


def test_of_several_images_the_bad_one_is_named(client: httpx.Client) -> None:
    files = [("images", PNG), ("images", b"bad"), ("images", PNG)]
    body = problem(client.post("/classify", files=files), 415)
    assert body["detail"].startswith("image 2 of 3: ")


def test_large_images_are_decoded_too(client: httpx.Client) -> None:
    small = Image.open(BytesIO(PNG))
    wide = encoded(small.resize((512, 512), Image.Resampling.NEAREST))
    assert INLINE_PIXELS < 512 * 512
    heavy = encoded(small.resize((512, 512)).convert("RGB"), "BMP")
    assert len(heavy) > INLINE_BYTES
    for data in (wide, heavy):
        assert client.post("/classify", content=data).json()[0]["label"] == "3"


def test_no_url_is_ever_fetched(client: httpx.Client, listener: tuple[str, list[object]]) -> None:
    url, seen = listener
    problem(client.post("/classify", json={"inputs": url}), 400)
    problem(client.post("/classify", json={"url": url, "image": url}), 400)
    problem(client.post("/classify", content=url), 415)
    problem(client.post("/classify", files={"image": url.encode()}), 415)
    problem(client.post("/classify", data={"image": url}), 415)
    assert seen == []


def test_no_pickle_is_ever_loaded(client: httpx.Client) -> None:
    pickled = b"cbuiltins\nexec\n(S'raise SystemExit'\ntR."
    for kind in ("application/vnd.bentoml+pickle", "application/octet-stream"):
        response = client.post("/classify", content=pickled, headers={"content-type": kind})
        problem(response, 415)


def test_large_bodies_are_parsed_in_a_thread() -> None:
    def where(body: bytes) -> bool:
        return threading.current_thread() is threading.main_thread()

    assert asyncio.run(request._parsed(where, bytes(request.INLINE_BYTES)))
    assert not asyncio.run(request._parsed(where, bytes(request.INLINE_BYTES + 1)))


def read(
    chunks: list[bytes], limit: int = 2**30, **headers: str
) -> tuple[request.Upload, request.Bodies]:
    """What a body in pieces is, in a worker that may hold `limit` bytes."""
    bodies = request.Bodies(limit)
    claim = request.Claim(bodies)
    left = [*chunks]

    async def receive() -> Any:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    sent = [(name.replace("_", "-").encode(), v.encode()) for name, v in headers.items()]
    return asyncio.run(request.read({"headers": sent}, receive, claim)), bodies


def test_a_body_of_exactly_the_limit_is_read() -> None:
    def body(chunks: list[bytes], announced: bytes = b"") -> bytes:
        async def receive() -> Any:
            return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

        return asyncio.run(
            request.read_body(receive, announced, 10, request.Claim(request.Bodies()))
        )

    assert body([b"12345", b"67890"], b"10") == b"1234567890"
    for chunks, announced in (([b"12345", b"678901"], b""), ([b"x"], b"11")):
        with pytest.raises(Problem, match="has 11 bytes or more: at most 10") as caught:
            body(chunks, announced)
        assert caught.value.status == 413
        assert caught.value.members == {"found": 11, "allowed": 10}


def test_all_bodies_of_a_worker_have_one_limit() -> None:
    bodies = request.Bodies(10)
    one, other = request.Claim(bodies), request.Claim(bodies)
    one.add(4)
    other.add(6)
    with pytest.raises(Overloaded, match="too many large bodies"):
        one.add(1)
    assert (one.held, other.held, bodies.held) == (4, 6, 10)
    other.close()
    other.close()
    assert (other.held, bodies.held) == (0, 4)
    with pytest.raises(Overloaded):
        read([b"12345", b"678901"], limit=10)
    assert request.MAX_HELD == 256 * 2**20


@pytest.mark.parametrize("kind", ["Application/JSON", "application/json ; charset=utf-8"])
def test_a_type_is_read_in_any_case(kind: str) -> None:
    body = json.dumps(inputs(PNG, top_k=3)).encode()
    upload, _ = read([body], content_type=kind)
    assert upload == request.Upload([PNG], several=False, top_k=3)
