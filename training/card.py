"""The model card: the manifest in words, for whoever finds the folder."""

from __future__ import annotations

from bundle.manifest import Manifest, Metrics, Run
from bundle.markdown import escaped


def write(manifest: Manifest, run: Run) -> str:
    """The bundle's README.md."""
    m = manifest
    size = m.preprocessing.size
    shown = [escaped(name) for name in m.class_names[:50]]
    more = f" and {len(m.class_names) - 50} more" if len(m.class_names) > 50 else ""
    classes = ", ".join(shown) + more
    return f"""# {m.name}

{_warnings(run)}Classifies images into {len(m.class_names)} classes: {classes}.

Trained on {m.fraction * 100:.6g} % of the labels of `{m.dataset.name}`: {m.n_labels_train:,} to
train, {m.n_labels_val:,} to choose the epoch and the temperature. No other label was used. The
test images chose nothing.{_without_labels(m)}

| split | images | accuracy | balanced accuracy | F1 (weighted) | precision | recall | loss |
|---|---|---|---|---|---|---|---|
{_row("validation", m.val)}
{_row("test", m.test) if m.test else "| test | left unread | | | | | | |"}

One run with seed {m.seed}. Balanced accuracy is the mean of the classes' recalls. The figures were
measured on the ONNX graph in ONNX Runtime.
{_variants(m, run)}
## Use

`model.onnx` takes `images`, uint8 [N, {size}, {size}, 3] (RGB; the centre square of the image,
scaled), and gives `probabilities`, float32 [N, {len(m.class_names)}], and `embedding`.
Normalisation and temperature ({m.temperature:.3f}) are inside. The class names are in the file's
metadata. `serve --models DIR` answers HTTP from it, `classify PATH... --models DIR` labels files.

## How it was made

- `{run.command}`
- {m.preset} preset: {m.backbone}, {m.n_parameters:,} parameters; {m.epochs} epochs, weights of
  epoch {m.best_epoch}; {run.seconds["train"]:.0f} s on {run.hardware}
- device {m.device.value} ({m.device.reason}), precision {m.precision.value}
  ({m.precision.reason})
- export: at most {m.parity.max_abs_diff:.1e} from torch (fp32, CPU) on {m.parity.n_images}
  held-out images, from file bytes to probabilities, top-1 agreement {m.parity.top1_agreement:.0%}
- data hash `{m.dataset.hash[:16]}`, labelled rows `{m.indices_hash[:16]}`
- {", ".join(f"{name} {version}" for name, version in m.packages.items())}

## Limits

It knows only the classes above and answers with one of them for every image. It was measured on
images like its training images; on others expect less.
"""


def _warnings(run: Run) -> str:
    return "".join(f"**Warning**: {warning}.\n\n" for warning in run.warnings)


def _without_labels(m: Manifest) -> str:
    said = ""
    if m.extractor is not None and m.extractor.objective == "supervised":
        said += (
            f"\n\nThe network began with weights (`{m.extractor.version}`) that others had learned "
            f"with labels from images of `{m.extractor.dataset}`."
        )
    elif m.extractor is not None:
        said += (
            f"\n\nThe network began with a feature extractor (`{m.extractor.version}`, "
            f"{m.extractor.objective}) learned without labels from images of "
            f"`{m.extractor.dataset}`."
        )
    if m.n_unlabelled:
        said += f"\n\n{m.n_unlabelled:,} other training images taught without their labels."
    return said


def _variants(m: Manifest, run: Run) -> str:
    said = ""
    for v in m.variants:
        shown, fp32, split = (
            (v.test, m.test, "test") if v.test and m.test else (v.val, m.val, "validation")
        )
        said += (
            f"\n`model.{v.precision}.onnx` is the same model in {v.precision}: accuracy "
            f"{shown.accuracy:.4f} on {split} where fp32 has {fp32.accuracy:.4f}, the same class "
            f"on {v.agreement:.2%} of {v.n_compared:,} held-out images"
        )
        gain = run.gains.get(v.precision)
        said += (
            f", {gain.ratio:.2f} times fp32's images/s in ONNX Runtime on one thread of "
            f"{gain.hardware}.\n"
            if gain
            else "; its speed was not measured.\n"
        )
    return said


def _row(split: str, metrics: Metrics) -> str:
    m = metrics
    balanced = "–" if m.balanced_accuracy is None else f"{m.balanced_accuracy:.4f}"
    return (
        f"| {split} | {m.n:,} | {m.accuracy:.4f} | {balanced} | {m.f1:.4f} | {m.precision:.4f} "
        f"| {m.recall:.4f} | {m.loss:.4f} |"
    )
