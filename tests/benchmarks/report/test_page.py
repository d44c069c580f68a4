from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

from labelcurve.benchmarks import compare
from labelcurve.benchmarks.quality.gallery import Gallery
from labelcurve.benchmarks.record import Model, Report
from labelcurve.benchmarks.report import drawing, page, tables
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.text import duration
from tests.benchmarks.samples import renamed


@pytest.fixture(scope="module")
def measured_page(measured: Report) -> str:
    """As HTML."""
    return page.html(measured)


@pytest.fixture(scope="module")
def loaded_pages(loaded: Report) -> tuple[str, str]:
    """As HTML and as Markdown."""
    return page.html(loaded), page.markdown(loaded)


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the text alone: the nine plots of a page take most of its time."""
    monkeypatch.setattr(drawing, "svg", lambda *_: "<svg></svg>")


def test_names_and_notes_from_outside_do_not_format_the_markdown(measured: Report) -> None:
    data = measured.dataset.model_copy(update={"name": "a*b\n# c"})
    update = {"dataset": data, "notes": ("one\n# two",), "warnings": ("three\n\nfour",)}
    found = page.markdown(measured.model_copy(update=update))
    assert found.startswith("# What labels buy on a\\*b # c\n")
    assert "\n> one # two\n" in found
    assert "\n> **three four**\n" in found
    assert "\n\na\\*b # c, " in found


def test_writes_three_files_and_the_plots_and_nothing_else(
    measured: Report, tmp_path: Path
) -> None:
    (tmp_path / "new" / "folder" / "plots").mkdir(parents=True)
    (tmp_path / "new" / "folder" / "plots" / "of-an-earlier-report.png").touch()
    paths = page.write(tmp_path / "new" / "folder", measured)
    written = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert written == {"plots"} | {path.name for path in paths.values()}
    assert written == {"report.html", "report.md", "report.json", "plots"}
    drawn = {path.name for path in (tmp_path / "new" / "folder" / "plots").iterdir()}
    assert drawn == set(re.findall(r"\(plots/(\w+\.png)\)", paths["md"].read_text()))
    assert len(drawn) >= 6
    assert Report.model_validate_json(paths["json"].read_bytes()) == measured
    assert json.loads(paths["json"].read_text())["schema_version"] == 1


def test_a_folder_that_cannot_be_written_is_named(measured: Report, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LabelcurveError, match=r"cannot write the report to .*--out"):
        page.write(tmp_path / "file" / "out", measured)


def test_an_end_while_it_is_drawn_leaves_the_earlier_report_whole(
    measured: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in page.FILES.values()]
    for path in paths:
        path.write_text("of an earlier report")

    def stopped(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(page, "html", stopped)
    with pytest.raises(KeyboardInterrupt):
        page.write(tmp_path, measured)
    assert all(path.read_text() == "of an earlier report" for path in paths)


def test_a_folder_in_the_place_of_a_file_is_named_before_anything_is_written(
    measured: Report, tmp_path: Path
) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(LabelcurveError, match=r"report\.html is a folder there; .*--out"):
        page.write(tmp_path, measured)
    assert not (tmp_path / "report.json").exists()


def test_the_page_stands_alone(loaded_pages: tuple[str, str]) -> None:
    text = loaded_pages[0]
    assert not re.search(r"(src|href)=\"(?!#|data:)", text)
    assert "@import" not in text
    assert "<script" not in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert text.count("<svg ") == 11
    assert "of the images, a person looks at the rest." in text
    assert not re.search(r"\b(nan|None|inf)\b", re.sub(r"<svg.*?</svg>", "", text, flags=re.S))


def test_every_figure_has_its_conditions(loaded: Report, loaded_pages: tuple[str, str]) -> None:
    for text in loaded_pages:
        for model in loaded.models:
            assert model.name in text
            assert model.version in text
        assert "a warning" in text
        assert "a note" in text
        assert "UNSTABLE" in text
        assert "8.77" in text
        assert "321" in text
        assert "n = 355" in text or "355 test images" in text
        assert "12.3" in text
        assert "bench --no-load" in text
        assert loaded.provenance.cpu in text
        assert loaded.provenance.packages["numpy"] in text
        assert loaded.dataset.hash[:12] in text


def test_linear_heads_have_no_epochs_to_draw(measured: Report, no_plots: None) -> None:
    heads = [m.model_copy(update={"history": (), "epochs": 0}) for m in measured.models]
    some = measured.model_copy(update={"models": (*heads[:1], *measured.models[1:])})
    none = measured.model_copy(update={"models": tuple(heads)})
    assert "(plots/history.png)" in page.markdown(some)
    assert f"{heads[0].name}: n =" not in page.markdown(some).partition("By epoch")[2]
    assert "By epoch" not in page.markdown(none) + page.html(none)
    assert drawing.png(page.DRAWN["history"], some)


def test_without_load(measured: Report, measured_page: str) -> None:
    assert "Not measured" in measured_page
    assert "Not measured" in page.markdown(measured)


def test_names_cannot_break_the_page_or_the_tables(measured: Report) -> None:
    old = measured.dataset.class_names
    names = ("<script>alert(1)</script>", "a|b", "*c_", "$d", *old[4:])
    changed = renamed(measured, names)
    shown = page.html(changed)
    assert "<script" not in shown
    assert "<bdi>*c_</bdi>" in shown
    text = page.markdown(changed)
    assert any(line.startswith(r"| a\|b | ") for line in text.splitlines())
    assert r"\<script\>alert(1)\</script\>" in text
    assert r"| \*c\_ |" in text
    assert not re.search(r"[^\\]<script|[^\\]\*c_", text)


def test_names_in_any_column_are_no_markdown(measured: Report, no_plots: None) -> None:
    cells = [r"\`x\` \[a\](b)", r"\[c\](d)", r"1\|2"]
    assert page._cells(("`x` [a](b)", "[c](d)", "1|2"), 2) == cells
    name = "`x` [a](https://b.example)"
    text = page.html(renamed(measured, (name, *measured.dataset.class_names[1:])))
    assert f"<bdi>{name}</bdi>" in text
    assert 'https://b.example"' not in text


def test_the_commonest_mistakes_are_listed(measured: Report) -> None:
    n = len(measured.dataset.class_names)
    right = np.eye(n, dtype=int) * 30
    fewest, most = right.copy(), right.copy()
    fewest[3, 8], fewest[1, 2] = 30, 30
    most[3, 8], most[7, 9] = 10, 20
    models = []
    for model, found in ((measured.models[0], fewest), (measured.models[-1], most)):
        confusion = {"confusion": tuple(map(tuple, found.tolist()))}
        accuracy = model.accuracy.model_copy(update=confusion)
        models.append(model.model_copy(update={"accuracy": accuracy}))
    text = page.markdown(measured.model_copy(update={"models": tuple(models)}))
    assert "| 7 | 9 | 50 | 0.0 % | 40.0 % |\n| 3 | 8 | 40 | 50.0 % | 25.0 % |\n" in text
    assert "| 1 | 2 |" not in text, "the model with the most labels does not make this mistake"


def test_pictures_are_shown_when_asked_for(
    measured: Report, galleries: tuple[Gallery, ...], measured_page: str, no_plots: None
) -> None:
    text = page.html(measured, galleries)
    assert text.count("data:image/png;base64,") == sum(len(g.examples) for g in galleries)
    assert "data:image" not in measured_page


def test_the_first_page_holds_answer_table_and_curve_and_the_appendix_is_folded(
    loaded: Report, loaded_pages: tuple[str, str]
) -> None:
    shown, _, folded = loaded_pages[0].partition('<details class="appendix">')
    assert f"{loaded.models[-1].n_labels:,} labels give an accuracy of" in shown
    assert shown.count("<table") == shown.count("<svg ") == 1
    for section in ("Findings", "Learning curve", "Accuracy", "Provenance"):
        assert f"<h2>{section}</h2>" in folded
        assert section not in shown
    for fraction in ("10 %", "50 %", "100 %"):
        assert f"<bdi>{fraction}</bdi>" in shown
    assert page.APPENDIX not in "".join(loaded_pages)


def test_no_table_is_empty(loaded_pages: tuple[str, str]) -> None:
    assert not re.search(r"<tbody>\s*</tbody>", loaded_pages[0])
    assert not re.search(r"\| ---[-:| ]*\|\n\n", loaded_pages[1])


def test_a_knee_at_the_most_clients_is_no_promise(loaded: Report) -> None:
    assert loaded.saturation is not None
    assert "more clients only wait longer" in page.markdown(loaded)
    most = loaded.saturation.steps[-1].users
    rising = loaded.saturation.model_copy(update={"knee": most})
    text = page.markdown(loaded.model_copy(update={"saturation": rising}))
    assert "it may lie beyond" in text
    assert "only wait longer" not in text


def test_an_unstable_rate_is_marked_wherever_it_is_shown(loaded: Report) -> None:
    assert "(unstable)" not in page.markdown(loaded)
    first, *others = loaded.models
    assert first.load is not None
    shaky = first.model_copy(update={"load": first.load.model_copy(update={"stable": False})})
    text = page.markdown(loaded.model_copy(update={"models": (shaky, *others)}))
    assert text.count(" (unstable) |") == 2, "the table of the models, and that of the cost"


def test_batches_and_service_cost_by_the_same_machine(loaded: Report) -> None:
    best = max(batch.images_per_s for batch in loaded.models[0].latency.batches)
    cores = loaded.provenance.cores
    text = page.markdown(loaded)
    assert f"{1e6 / best / 3600 / cores * 0.5:,.3f} |" in text, "0.5 an hour"
    assert f"with {cores} session{'s' * (cores > 1)} of 1 thread each" in text


def test_images_without_labels_are_not_passed_over(measured: Report) -> None:
    first, *others = measured.models
    assert "| 144 + 16 | – |" in page.markdown(measured)
    unlabelled = first.model_copy(update={"n_unlabelled": 1234})
    text = page.markdown(measured.model_copy(update={"models": (unlabelled, *others)}))
    assert "| 144 + 16 | 1,234 |" in text


def test_training_times_of_a_shared_machine_are_marked(measured: Report) -> None:
    assert "(shared)" not in page.markdown(measured)
    first, *others = measured.models
    busy = first.model_copy(update={"shared": True, "train_seconds": 99.0, "seed": 1})
    text = page.markdown(measured.model_copy(update={"models": (busy, *others)}))
    assert text.count("1 min 39 s (shared) |") == 2  # at the top, and below Training
    assert "Shared: the machine did other work meanwhile" in text
    # A seed that had its machine to itself gives the time of its fraction.
    text = page.markdown(measured.model_copy(update={"models": (first, busy, *others)}))
    assert text.count("1 min 39 s (shared) |") == 1
    assert f"| {duration(first.train_seconds)} | " in text


def test_corruptions_under_which_more_labels_hurt_are_a_finding(measured: Report) -> None:
    first, *_, last = measured.models
    assert last.robustness is not None
    assert first.robustness is not None
    index = 5
    hit = last.robustness.shifts[index]

    def with_accuracy(model: Model, accuracy: float) -> Model:
        assert model.robustness is not None
        shifts = list(model.robustness.shifts)
        shifts[index] = hit.model_copy(update={"accuracy": accuracy})
        found = model.robustness.model_copy(update={"shifts": tuple(shifts)})
        return model.model_copy(update={"robustness": found})

    for few, many, said in ((0.9, 0.2, True), (0.5, 0.45, False), (0.2, 0.9, False)):
        pair = (with_accuracy(first, few), with_accuracy(last, many))
        text = page.markdown(measured.model_copy(update={"models": pair}))
        assert ("More labels reduce accuracy under some corruptions: " in text) == said
        assert (f"{hit.kind} {hit.level}: {first.name} 90.0 %, {last.name} 20.0 %" in text) == said


def test_the_default_leads_where_it_has_several_fractions(measured: Report) -> None:
    few, *_, many = (
        m.model_copy(update={"extractor": "contrastive", "preset": "default", "besides": ""})
        for m in measured.models
    )
    more = [
        few.model_copy(update={"name": f"r{n}", "preset": "reference", "n_labels_train": n})
        for n in (100, 200, 300)
    ]
    for models, first in (((*more, few, many), "default"), ((*more, many), "reference")):
        report = measured.model_copy(update={"models": models})
        assert tables.variants(report)[0] == first


def test_every_file_has_the_findings(loaded_pages: tuple[str, str]) -> None:
    for text in loaded_pages:
        assert "No curve is fitted: that takes 5 fractions" in text
        assert "McNemar" in text
        assert "a million images at 0.5 an hour" in text
        assert "Classes that gain most" in text


@pytest.mark.parametrize("name", ["cifar10", "digits"])
def test_the_committed_report_is_that_of_its_figures(name: str) -> None:
    """`bench render` makes it again after a change of the text; only `bench` makes its pictures."""
    folder = Path(__file__).parents[3] / "docs" / name
    report = compare.read(folder)
    assert (folder / "report.md").read_text() == page.markdown(report)
    told = html.unescape(re.sub(r"<[^>]*>", "", (folder / "report.html").read_text()))
    for row in tables.rows(report):
        assert all(cell in told for cell in row)
    for curve in report.curves:
        assert all(re.sub(r"[*`]", "", text) in told for text in curve.text)
