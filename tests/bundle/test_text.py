from __future__ import annotations

import os
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from labelcurve.bundle.text import (
    counted,
    duration,
    escaped,
    listed,
    one,
    percent,
    plain,
    shown,
    table,
)


@pytest.mark.parametrize(
    "name",
    [
        "cat",
        "*cat*",
        "__cat__",
        "`cat`",
        "<b>cat</b>",
        "[cat](http://example.com)",
        "![cat](cat.png)",
        "cat & dog",
        "cat &amp; dog",
        "cat | dog",
        "\\*cat\\*",
        "cat\\",
        "~~cat~~",
        "été 猫",
    ],
)
def test_a_name_is_shown_as_it_is(name: str) -> None:
    shown = MarkdownIt("gfm-like", {"linkify": False})
    (paragraph,) = shown.parseInline(f"of {escaped(name)}, and")
    assert paragraph.children is not None
    assert {part.type for part in paragraph.children} <= {"text", "text_special"}
    assert "".join(part.content for part in paragraph.children) == f"of {name}, and"
    table = shown.parse(f"| {escaped(name)} | b |\n| --- | --- |\n| {escaped(name)} | d |\n")
    cells = [token.children for token in table if token.type == "inline"]
    assert len(cells) == 4
    for cell in (cells[0], cells[2]):
        assert cell is not None
        assert "".join(part.content for part in cell) == name


def test_lines_become_one() -> None:
    assert escaped(" a\n\n# b ") == "a # b"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3.21, "3.2 s"),
        (59.6, "59.6 s"),
        (59.96, "1 min 00 s"),
        (245, "4 min 05 s"),
        (3725, "1 h 02 min"),
        (4194, "1 h 10 min"),
        (3599.6, "1 h 00 min"),
        (7199.6, "2 h 00 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_counts_shares_and_tables() -> None:
    assert (counted(1, "model"), counted(1200, "model")) == ("1 model", "1,200 models")
    assert (percent(0.93345), percent(0.5, 0)) == ("93.34 %", "50 %")
    assert table(("a", "b"), [("x|y", 1), (r"x\|y", 2.5)]) == (
        "| a | b |\n| --- | ---: |\n| x\\|y | 1 |\n| x\\|y | 2.5 |\n"
    )


def test_numbers_to_three_digits_or_one_decimal_have_no_exponent_and_no_minus_zero() -> None:
    assert [plain(v) for v in (0, 2e-8, 1.25, 99.96, 1e15)] == [
        "0",
        "0.00000002",
        "1.25",
        "100",
        "1,000,000,000,000,000",
    ]
    assert [one(v) for v in (-0.04, -0.06, 12.345)] == ["0.0", "-0.1", "12.3"]


def test_a_list_has_an_end_and_a_path_is_one_line_of_text() -> None:
    assert listed([], 2) == ""
    assert listed(["a", "b"], 2) == "a, b"
    assert listed(["a", "b", "c"], 2) == "a, b and 1 more"
    assert listed(map(str, range(2000)), 1) == "0 and 1,999 more"
    assert shown(Path("a\x1b\x7f\x9f\nb é")) == r"a\x1b\x7f\x9f\x0ab é"
    assert shown(Path(os.fsdecode(b"\xe9"))) == r"\xe9"


def test_numbers_from_a_hundred_on_are_whole() -> None:
    assert [plain(v) for v in (99.4, 100, 1234.5, 0.125)] == ["99.4", "100", "1,234", "0.125"]
