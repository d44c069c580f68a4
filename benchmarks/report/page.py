"""The report's files: one page of HTML, Markdown with its plots, and JSON, all from one record."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from benchmarks import tables
from benchmarks.gallery import Gallery
from benchmarks.record import Report
from benchmarks.report import cost, drawing, labels, origin, quality, summary
from benchmarks.report.blocks import Cards, Code, Pictures, Plot, Points, Rows, Section, Text
from bundle import files
from bundle.errors import LabelcurveError
from bundle.markdown import escaped

_MARKDOWN = MarkdownIt("commonmark", {"html": False})
FILES = {"html": "report.html", "md": "report.md", "json": "report.json"}
PLOTS = "plots"


def sections(report: Report, shown: Sequence[Gallery] = ()) -> list[Section]:
    """The whole report, in the order in which it is read."""
    found = [
        summary.section(report),
        labels.section(report),
        labels.reference(report),
        *quality.sections(report, shown),
        *cost.sections(report),
        *origin.sections(report),
    ]
    return [section for section in found if section]


def write(out: Path, report: Report, shown: Sequence[Gallery] = ()) -> dict[str, Path]:
    """Writes report.html, report.md, report.json and plots/, each file beside and then renamed.

    Args:
        out: folder; made when it is missing.
        report: the figures.
        shown: test images for the HTML page; none leaves the pictures out.

    Returns:
        Paths by kind: html, md, json.

    Raises:
        LabelcurveError: a file cannot be written.
    """
    try:
        # Before the plots are drawn, which takes seconds.
        (out / PLOTS).mkdir(parents=True, exist_ok=True)
        for name in FILES.values():
            if (out / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{name} is a folder there")
        # All of it first: an end in the middle must not leave a part of this report and a part of
        # an earlier one.
        contents = dict(_contents(out, report, shown))
        for path, content in contents.items():
            files.replace(path, content)
        stale = set((out / PLOTS).glob("*.png")) - contents.keys()
        for path in stale:  # of a report with more in it
            path.unlink()
    except OSError as error:
        raise LabelcurveError(
            f"cannot write the report to {out}: {error.strerror or error}; choose another --out"
        ) from error
    return {kind: out / name for kind, name in FILES.items()}


def _contents(out: Path, report: Report, shown: Sequence[Gallery]) -> Iterator[tuple[Path, bytes]]:
    yield out / FILES["json"], (report.model_dump_json(indent=1) + "\n").encode()
    for section in sections(report):
        for block in section.blocks:
            if isinstance(block, Plot):
                yield out / PLOTS / f"{block.name}.png", drawing.png(block.draw, report)
    yield out / FILES["md"], markdown(report).encode()
    yield out / FILES["html"], html(report, shown).encode()


def html(report: Report, shown: Sequence[Gallery] = ()) -> str:
    """The page: self-contained, for light, dark, narrow screens and paper."""
    environment = Environment(
        loader=PackageLoader("benchmarks.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["inline"] = lambda text: Markup(_MARKDOWN.renderInline(text))
    environment.filters["anchor"] = lambda text: text.lower().replace(" ", "-")
    environment.filters["svg"] = lambda plot: Markup(drawing.svg(plot.draw, report, plot.title))
    environment.tests["kind"] = lambda block, name: type(block).__name__ == name
    return environment.get_template("page.html.j2").render(
        report=report,
        title=title(report),
        subtitle=subtitle(report),
        sections=sections(report, shown),
    )


def markdown(report: Report) -> str:
    """The same figures for where HTML is not shown; the plots lie beside it."""
    lines = [f"# {title(report)}", "", f"_{subtitle(report)}_", ""]
    lines += [f"> {note}\n" for note in report.notes]
    lines += [f"> **{warning}**\n" for warning in report.warnings]
    for section in sections(report):
        lines += [f"## {section.title}", ""] if section.title else []
        for block in section.blocks:
            match block:
                case Text(text):
                    lines += [text, ""]
                case Points(items):
                    lines += [*(f"- {item}" for item in items), ""]
                case Rows():
                    lines += [f"{block.summary}:", ""] if block.summary else []
                    body = [_shown(row, block.names) for row in block.body]
                    lines += [tables.markdown(block.header, body)]
                case Plot():
                    lines += [f"![{block.title}]({PLOTS}/{block.name}.png)", ""]
                    lines += [block.caption, ""]
                case Cards() | Pictures():
                    pass  # the table has the same figures; pictures are in the HTML only
    return "\n".join(lines).rstrip() + "\n"


def _shown(row: Sequence[str], names: int) -> list[str]:
    return [
        f"`{cell}`" if isinstance(cell, Code) else escaped(cell) if column < names else cell
        for column, cell in enumerate(row)
    ]


def title(report: Report) -> str:
    """The heading of the report."""
    return f"What labels buy on {report.dataset.name}"


def subtitle(report: Report) -> str:
    """Classes, test images, date, machine."""
    made = report.provenance
    return (
        f"{len(report.dataset.class_names)} classes, "
        f"{tables.counted(report.dataset.n_test, 'test image')} · "
        f"{tables.counted(len(report.models), 'model')} · {made.date[:10]} · "
        f"{made.cpu}, {tables.counted(made.cores, 'core')}"
    )
