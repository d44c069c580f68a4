"""Names that others chose, in Markdown."""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&])")


def escaped(text: str) -> str:
    """`text` as Markdown shows it as it is, in one line: within a paragraph or a table's cell."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
