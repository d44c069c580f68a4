from __future__ import annotations

import pytest

from labelcurve.serving.errors import Problem
from labelcurve.serving.web import multipart

HEAD = b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n'


def test_parts_are_their_names_and_bytes() -> None:
    body = HEAD + b"a\r\n" + HEAD.replace(b"image", b"images") + b"\0b\r\n--x--\r\n"
    assert multipart.parse(body, "multipart/form-data; boundary=x") == [
        ("image", b"a"),
        ("images", b"\0b"),
    ]


@pytest.mark.parametrize(
    "headers", [b"", b"Content-Type: image/png\r\n", b"Content-Disposition: x\r\n"]
)
def test_a_part_without_a_name_has_none(headers: bytes) -> None:
    body = HEAD + b"a\r\n--x\r\n" + headers + b"\r\nb\r\n--x--\r\n"
    assert multipart.parse(body, "multipart/form-data; boundary=x") == [
        ("image", b"a"),
        ("", b"b"),
    ]


def test_a_name_is_that_of_the_disposition_whatever_other_headers_say() -> None:
    other = b'X-Note: form-data; name="other"\r\n'
    body = b"--x\r\n" + other + HEAD.removeprefix(b"--x\r\n").replace(b"C", b"c")
    body = body.replace(b"\r\n\r\n", b"\r\n" + other + b"\r\n") + b"a\r\n--x--\r\n"
    assert multipart.parse(body, "multipart/form-data; boundary=x") == [("image", b"a")]


def test_as_many_parts_as_are_allowed_are_read() -> None:
    many = (HEAD + b"a\r\n") * multipart.MAX_PARTS + b"--x--\r\n"
    assert len(multipart.parse(many, "multipart/form-data; boundary=x")) == 64


@pytest.mark.parametrize("body", [b"--y\r\n", HEAD + b"cut off", b"", HEAD[:20]])
def test_what_is_malformed_is_refused_without_a_line_in_the_log(
    body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Problem) as caught:
        multipart.parse(body, "multipart/form-data; boundary=x")
    assert caught.value.status == 400
    assert not caplog.records


def test_a_form_without_a_boundary_and_one_with_too_many_parts() -> None:
    with pytest.raises(Problem, match="boundary"):
        multipart.parse(b"", "multipart/form-data")
    many = (HEAD + b"a\r\n") * (multipart.MAX_PARTS + 1) + b"--x--\r\n"
    with pytest.raises(Problem, match="65 parts or more in one request: at most 64") as caught:
        multipart.parse(many, "multipart/form-data; boundary=x")
    assert caught.value.status == 413
    assert caught.value.members == {"found": 65, "allowed": 64}
