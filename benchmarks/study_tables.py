"""What README and docs show of the study, as Markdown made from `benchmarks/results/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import rows
from benchmarks.record import Model, Report
from benchmarks.rows import Row, Study
from benchmarks.tables import counted, duration, learned, markdown, measured, served, unstable

NONE = "–"

OPENING = (
    "labels",
    "training + validation",
    "accuracy",
    "reference experiment, as published",
    "its network, our protocol",
    "same network from scratch",
    "epochs",
    "training time",
    "p50 ms",
    "requests/s",
)

ABLATIONS = {
    "scratch": "the extractor",
    "no-unlabelled": "images without labels (twice the epochs instead)",
    "no-muon": "Muon (SGD at 0.1 instead)",
    "no-ema": "averaged weights",
    "no-label-smoothing": "label smoothing",
    "no-cutout": "cutout",
    "no-crop": "random crops",
    "no-flip": "mirroring",
}


def share(fraction: float) -> str:
    """`10 %`."""
    return f"{fraction * 100:.3g} %"


def accuracy(group: list[Row]) -> str:
    """`85.3 %`, or `85.3 ± 0.2 % (n = 3)`."""
    if not group:
        return NONE
    spread = rows.deviation(group, lambda row: row.accuracy)
    middle = rows.mean(group, lambda row: row.accuracy)
    if spread is None:
        return f"{middle * 100:.1f} %"
    return f"{middle * 100:.1f} ± {spread * 100:.1f} % (n = {len(group)})"


def epochs(group: list[Row]) -> str:
    """The mean of the epochs that were run."""
    return f"{rows.mean(group, lambda row: row.epochs):.0f}" if group else NONE


def seconds(group: list[Row]) -> str:
    """The mean time of training, over the rows that had the machine for themselves."""
    alone = [row for row in group if not row.shared]
    return duration(rows.mean(alone, lambda row: row.train_seconds)) if alone else NONE


def opening(report: Report, study: Study, reference: Mapping[str, Any]) -> str:
    """The table that the README opens with, and what its figures are."""
    published = {row["fraction"]: row["accuracy"] for row in reference["results"]}
    loads = {m.fraction: m for m in report.models if m.variant == "default" and m.seed == 0}
    body = []
    for fraction in study.fractions("default"):
        group = study.group("default", fraction)
        network = study.group("reference", fraction)
        without = study.group("reference-scratch", fraction)
        theirs = accuracy(network)
        if not network and without:
            theirs = f"{accuracy(without)}, without its pretext task"
        body.append(
            (
                share(fraction),
                f"{group[0].n_labels_train:,} + {group[0].n_labels_val:,}",
                accuracy(group),
                f"{published[fraction]:.0%}".replace("%", " %") if fraction in published else NONE,
                theirs,
                accuracy(study.group("scratch", fraction)),
                epochs(group),
                seconds(group),
                *_load(loads.get(fraction)),
            )
        )
    ours = [row for row in study.rows if row.variant == "default"]
    about = [
        f"Accuracy on {report.dataset.name}'s {study.rows[0].n_test:,} official test images, which "
        "chose nothing; one seed where no n is given, else mean ± standard deviation over n seeds.",
        f"{learned(report)}".strip(),
    ]
    if fewest := min((row.n_unlabelled for row in ours if row.n_unlabelled), default=0):
        about[-1] += (
            f" At the fractions below 100 % {fewest:,} to {max(r.n_unlabelled for r in ours):,} "
            "other training images taught, too, without their labels."
        )
    about.append(
        f"Reference experiment: {reference['note']} ([source]({reference['url']})). Under our "
        "protocol it has a fixed tenth of the labels, and its test images choose nothing "
        "([docs/reference.md](docs/reference.md))."
    )
    alone = sorted({row.hardware for row in ours if not row.shared})
    hidden = [row for row in study.rows if row.shared]
    times = f"Training times: {'; '.join(alone)}."
    if hidden:
        times += (
            f" Of {len(study.rows)} models {len(hidden)} had to share the machine with other work: "
            "their accuracy counts, their time is not shown."
        )
    about += [
        times,
        f"{served(report)}{_again(report, ours)}{measured(report)}. The commands: "
        "[below](#the-figures-above).",
    ]
    if study.missing:
        about.append(
            f"{counted(len(study.missing), 'row')} of the study not trained yet: `python -m "
            "benchmarks.study` trains what is missing ([docs/results.md](docs/results.md))."
        )
    text = "\n".join(f"- {line}" for line in about if line)
    return f"{markdown(OPENING, body)}\n{text}"


def _again(report: Report, ours: Sequence[Row]) -> str:
    """A sentence where the models under load are not those whose accuracy is shown."""
    shown = {row.version for row in ours}
    others = [m for m in report.models if m.variant == "default" and m.version not in shown]
    if not others:
        return ""
    return "Some of these models were trained again by the same command. "


def _load(model: Model | None) -> tuple[str, str]:
    if model is None or model.load is None or model.load.p50_ms is None:
        return NONE, NONE
    rate = f"{model.load.requests_per_s:,.0f}{unstable([model])}"
    return f"{model.load.p50_ms:.1f}", rate


def experiment(study: Study, reference: Mapping[str, Any]) -> str:
    """The reference experiment's question, its answer and ours: with and without pretraining."""
    header = (
        "network",
        "labels",
        *(f"{what}, {which}" for what in ("accuracy", "epochs", "time") for which in _WHICH),
    )
    body: list[tuple[str, ...]] = []
    for row in reference["results"]:
        bare = row.get("without_pretraining", {})
        found = [(bare, row)[which] for which in range(2)]
        body.append(
            (
                "experiment, as published",
                share(row["fraction"]),
                *(f"{r['accuracy']:.0%}".replace("%", " %") if r else NONE for r in found),
                *(str(r["epochs"]) if r else NONE for r in found),
                *(duration(r["train_seconds"]) if "train_seconds" in r else NONE for r in found),
            )
        )
    for name, bare, full in (
        ("the same, our protocol", "reference-scratch", "reference"),
        ("Labelcurve's", "scratch", "default"),
    ):
        for row in reference["results"]:
            groups = [study.group(variant, row["fraction"]) for variant in (bare, full)]
            body.append(
                (
                    name,
                    share(row["fraction"]),
                    *map(accuracy, groups),
                    *map(epochs, groups),
                    *map(seconds, groups),
                )
            )
    text = (
        "“Without” begins with random weights, “with” with what was learned from the images "
        f"alone. Time is that of the fine-tuning, on hardware that differs by row. {NONE}: not "
        "published, or not trained yet; times of models that were trained beside other work are "
        "not shown."
    )
    worth = [
        f"{name} {_worth(study, bare, full)}"
        for name, bare, full in (
            ("the experiment's network", "reference-scratch", "reference"),
            ("Labelcurve's", "scratch", "default"),
        )
        if _worth(study, bare, full)
    ]
    if worth:
        text += (
            f"\n\nWhat pretraining is worth, under our protocol: {'; '.join(worth)}. ±: standard "
            "error by the number of test images; seeds differ by some tenths more."
        )
    return f"{markdown(header, body)}\n{text}"


def _worth(study: Study, bare: str, full: str) -> str:
    """`+3.9 ± 0.5 points at 10 %, ...`; nothing where no fraction has both."""
    found: list[str] = []
    for fraction in study.fractions(bare):
        without, with_it = study.group(bare, fraction), study.group(full, fraction)
        if not without or not with_it:
            continue
        means = [rows.mean(group, _accuracy) for group in (without, with_it)]
        sizes = [len(group) * group[0].n_test for group in (without, with_it)]
        error = sum(m * (1 - m) / n for m, n in zip(means, sizes, strict=True)) ** 0.5
        points = f"{(means[1] - means[0]) * 100:+.1f}".replace("-", "−")
        unit = " points" * (not found)
        found.append(f"{points} ± {error * 100:.1f}{unit} at {share(fraction)}")
    return ", ".join(found)


_WHICH = ("without", "with")


def results(study: Study, speed: Mapping[str, Any] | None) -> str:
    """Every row of the study: the learning curve, the ablation, the speed."""
    parts = ["## The learning curve\n"]
    header = ("labels", "training + validation", "n", "accuracy", "F1", "epochs", "trained on")
    body: list[tuple[str, ...]] = []
    for fraction in study.fractions("default"):
        group = study.group("default", fraction)
        body.append(
            (
                share(fraction),
                f"{group[0].n_labels_train:,} + {group[0].n_labels_val:,}",
                str(len(group)),
                accuracy(group).partition(" (")[0],
                f"{rows.mean(group, lambda row: row.f1):.4f}",
                epochs(group),
                _hardware(group),
            )
        )
    parts.append(markdown(header, body))
    parts.append("## What each part is worth, at 10 % of the labels\n")
    full = study.group("default", 0.1)
    lines: list[tuple[str, ...]] = [("everything", str(len(full)), accuracy(full), NONE)]
    for variant, name in ABLATIONS.items():
        group = study.group(variant, 0.1)
        apart = NONE
        if group and full:
            difference = rows.mean(group, _accuracy) - rows.mean(full, _accuracy)
            apart = f"{difference * 100:+.1f}".replace("-", "−")
        lines.append((f"without {name}", str(len(group)), accuracy(group), apart))
    parts.append(markdown(("recipe", "n", "accuracy", "points"), lines))
    parts.append(f"{_noise(full)}±: standard deviation over the seeds.\n")
    parts.append("## All models\n")
    parts.append(
        markdown(
            ("command", "accuracy", "F1", "epoch kept", "arithmetic", "commit", "alone"),
            [
                (
                    f"`{row.command}`",
                    f"{row.accuracy * 100:.2f} %",
                    f"{row.f1:.4f}",
                    f"{row.best_epoch} of {row.epochs}",
                    f"{row.hardware}{f', {row.arithmetic}' if row.arithmetic else ''}",
                    _commit(row),
                    "no" if row.shared else "yes",
                )
                for row in study.rows
            ],
        )
    )
    parts.append(
        "Alone: nothing else ran on the machine. Each was trained with `--data` on CIFAR-10. "
        "Arithmetic: fp32 or bf16, where it was recorded."
        + " Behind a commit, +: with changes that were not committed."
        * any(_commit(row).endswith("+") for row in study.rows)
        + f" {len(study.missing)} rows are missing, and `python -m benchmarks.study` trains them, "
        "most telling first." * bool(study.missing) + "\n"
    )
    if speed is not None:
        parts.append("## Speed of training\n")
        parts.append(_speed(speed))
    return "\n".join(parts).rstrip()


def _noise(full: Sequence[Row]) -> str:
    """Which differences of one seed say nothing."""
    spread = rows.deviation(list(full), _accuracy)
    if spread is None:
        return ""
    apart = 2 * spread * (1 + 1 / len(full)) ** 0.5 * 100
    return (
        f"One seed each but for everything: a difference below some {apart:.1f} points (twice its "
        f"standard error, from the {spread * 100:.1f} points between seeds) is no difference. "
    )


def _accuracy(row: Row) -> float:
    return row.accuracy


def _commit(row: Row) -> str:
    """`94d0dd7`, or `94d0dd7+` where the tree had changes."""
    commit = row.git_commit or NONE
    return commit[:7] + "+" * commit.endswith("+")


def _hardware(group: Sequence[Row]) -> str:
    return "; ".join(sorted({row.hardware for row in group}))


def _speed(speed: Mapping[str, Any]) -> str:
    body = [
        (
            name,
            f"{figure['images_per_s']:,.0f} ({figure['spread'][0]:,.0f} to "
            f"{figure['spread'][1]:,.0f})",
            f"{figure['ceiling']:,.0f}",
            f"{figure['ratio']:.2f}",
        )
        for name, figure in speed["speed"].items()
    ]
    table = markdown(("", "images/s", "convolutions alone", "ratio"), body)
    note = speed.get("note")
    if note is None:
        busy = speed["load_average"] > 1.5 * speed["cores"]
        note = f"The load average was {speed['load_average']} on {speed['cores']} cores at the end"
        note += ": other work ran, so read the ratios." if busy else "."
    packages = ", ".join(f"{name} {version}" for name, version in speed["packages"].items())
    return (
        f"{table}\n{speed['date']}, {speed['hardware']}, {speed['precision']} "
        f"({speed['precision_reason']}), {speed['image_size']} px, n = "
        f"{speed['rounds']} rounds of {speed['seconds']:g} s in turn, mean (slowest to fastest); "
        f"{packages}; `python -m benchmarks.speed`. Images pass forward and backward; the second "
        "figure is that of the network's convolutions alone, on inputs of the same shapes. "
        f"{note}"
    )
