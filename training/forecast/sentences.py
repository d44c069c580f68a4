"""The sentences of `plan` for the reader who pays."""

from __future__ import annotations

from collections.abc import Sequence

from labelcurve.bundle.text import counted, one, percent, plain
from labelcurve.training.forecast.advice import Advice


def sentences(advice: Advice, price_per_label: float | None) -> Sequence[str]:
    """Returns three sentences for the reader who pays."""
    chance = (
        f"{_share(advice.probability)} that the gain is above {plain(advice.least_gain)} points"
    )
    single = advice.more == 1
    second = f"The probability is {chance}, from which {'it pays' if single else 'the labels pay'}."
    costs = ""
    if price_per_label is not None:
        price = advice.more * price_per_label
        verb, pays = ("It costs", "it pays") if single else ("They cost", "they pay")
        costs = f"{verb} {price:,.2f} ({plain(price_per_label)} a label)"
        second = f"{costs}; the probability is {chance}, from which {pays}."
    if advice.failed_check is None:
        first = _forecast(advice)
    else:
        first = f"No forecast is given, since {advice.failed_check}."
        second = "The measurements hold; what lies beyond them is not known."
        second = f"{costs}. {second}" if costs else second
    third = (
        "This holds for a linear classifier on frozen features, and for images like these: a "
        "fine-tuned model starts higher, and its gain may differ."
    )
    if advice.would_tell is not None:
        third = f"What would settle it: {advice.would_tell}."
    return first, second, third


def _forecast(advice: Advice) -> str:
    now, then, gain = advice.accuracy_now, advice.then, advice.gain
    head = {"yes": "Yes", "no": "No", "cannot tell": "These labels cannot tell"}[advice.answer]
    total = advice.n_labels + advice.more
    return (
        f"{head}: {counted(advice.more, 'more label')} ({total:,} in all) would take accuracy from "
        f"{percent(now.value, 1)} to about {percent(then.value, 1)} "
        f"({one(then.low * 100)} to {one(then.high * 100)} %), a gain of {shown_gain(advice)} "
        f"points ({one(gain.low)} to {one(gain.high)})."
    )


def shown_gain(advice: Advice) -> str:
    """The gain in points: the difference of both accuracies as they are shown."""
    now, then = (round(e.value * 100, 1) for e in (advice.accuracy_now, advice.then))
    return one(then - now)


def _share(probability: float) -> str:
    if probability > 0.99:
        return "over 99 %"
    return "under 1 %" if probability < 0.01 else f"{probability * 100:.0f} %"
