"""Where the models and the figures come from."""

from __future__ import annotations

from benchmarks import tables
from benchmarks.record import Report
from benchmarks.report import curve_plots
from benchmarks.report.blocks import NONE, Block, Code, Plot, Rows, Section, Text, count
from benchmarks.report.drawing import colour
from benchmarks.report.shown import main_models


def sections(report: Report) -> list[Section]:
    """Training and provenance."""
    return [_training(report), _provenance(report)]


def _training(report: Report) -> Section:
    body = [
        (
            m.name,
            m.version,
            m.preset,
            m.backbone,
            count(m.n_parameters),
            f"{m.size} px",
            f"{m.graph_bytes / 2**20:.1f} MB",
            str(m.seed),
            m.extractor or NONE,
            f"{m.best_epoch} of {m.epochs}",
            tables.training_time([m]),
            m.trained_on,
        )
        for m in report.models
    ]
    header = (
        *("model", "version", "preset", "backbone", "parameters", "input", "graph", "seed"),
        *("extractor", "best epoch", "time", "trained on"),
    )
    models = main_models(report)
    n = ", ".join(f"{m.name}: n = {m.n_labels_val:,}" for m in models)
    blocks: list[Block] = [
        Rows(header, body, [colour(report, model) for model in report.models]),
        Plot(
            "history",
            curve_plots.history,
            "Loss and metrics by epoch",
            f"By epoch, on the validation rows of each fraction ({n}). The thin vertical line is "
            "the epoch whose weights are kept.",
        ),
    ]
    if times := tables.pretraining_times(report):
        blocks.append(Text(f"The extractors had been learned without labels in {times}."))
    return Section("Training", blocks)


def _provenance(report: Report) -> Section:
    made = report.provenance
    packages = ", ".join(f"{name} {version}" for name, version in made.packages.items())
    body = [
        ("command", Code(made.command)),
        ("date", made.date),
        ("commit", made.git_commit or "unknown"),
        ("hardware", f"{made.cpu}, {tables.counted(made.cores, 'core')}, {made.memory_gb} GB"),
        ("system", f"{made.system}, Python {made.python}"),
        ("packages", packages),
        ("data", f"{report.dataset.name}, hash {report.dataset.hash[:12]}"),
    ]
    return Section("Provenance", [Rows(("what", "value"), body)])
