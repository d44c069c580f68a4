"""Which models stand for the others where there is no room for all."""

from __future__ import annotations

from benchmarks import tables
from benchmarks.record import Model, Report


def variants(report: Report) -> list[str]:
    """The variants: the default first, where it has two fractions, then by fractions."""
    found = {model.variant for model in report.models}

    def fractions(variant: str) -> int:
        return len({model.n_labels for model in report.models if model.variant == variant})

    def place(variant: str) -> tuple[bool, int, str]:
        n = fractions(variant)
        return not (variant == "default" and n > 1), -n, variant

    return sorted(found, key=place)


def main_models(report: Report) -> list[Model]:
    """One model a number of labels of the first variant, fewest labels first."""
    variant = variants(report)[0]
    chosen: dict[int, Model] = {}
    for model in sorted(report.models, key=lambda m: (m.n_labels, m.seed)):
        if model.variant == variant:
            chosen.setdefault(model.n_labels, model)
    return list(chosen.values())


def seeds(report: Report, model: Model) -> list[Model]:
    """The models that differ from `model` in nothing but the seed, and itself."""
    groups = tables.groups(report)
    return next(g for g in groups if any(each.name == model.name for each in g))


def loaded(report: Report) -> list[Model]:
    """The models that the load test used."""
    return [model for model in report.models if model.load is not None]
