from __future__ import annotations

import pytest
from markdown_it import MarkdownIt

from bundle.markdown import escaped


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
