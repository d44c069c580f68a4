"""The model card: a readable form of the manifest."""

from __future__ import annotations

from labelcurve.bundle.manifest import Manifest, Metrics, Run
from labelcurve.bundle.text import counted, escaped, listed


def write(manifest: Manifest, run: Run) -> str:
    """The bundle's README.md."""
    m = manifest
    size = m.preprocessing.size
    classes = listed(map(escaped, m.class_names), 50)
    return f"""# {m.name}

{_warnings(run)}Classifies images into {len(m.class_names)} classes: {classes}.

{_labels(m)}{_without_labels(m)}{_distilled(m, run)}

| split | images | accuracy | balanced accuracy | F1 (weighted) | precision | recall | loss |
|---|---|---|---|---|---|---|---|
{_row("validation", m.val)}
{_row("test", m.test) if m.test else "| test | left unread | | | | | | |"}

{_whose(m)}One run with seed {m.seed}. Balanced accuracy is the mean of the classes' recalls.
The figures were measured on the ONNX graph in ONNX Runtime.
{_predicted(m)}{_variants(m, run)}
## Use

`labelcurve serve --models DIR` answers HTTP from it, `labelcurve classify PATH... --models DIR`
labels files. Elsewhere: `model.onnx` takes `images`, uint8 [N, {size}, {size}, 3] (RGB), and gives
`probabilities`, float32 [N, {len(m.class_names)}], and `embedding`. Normalisation and temperature
({m.temperature:.3f}) are inside. The class names are in the file's metadata. It was trained on
pixels made like this, and on others its answers differ: bilinear without antialiasing, as in
OpenCV's `INTER_LINEAR`, is a different filter.

{pixels(size)}
(16-bit grey counts by its high byte: shift it right by eight bits first.)

## How it was made

- `{run.command}`
- {m.preset} preset: {m.backbone}, {m.n_parameters:,} parameters; {_learned(m)};
  {run.seconds["train"]:.0f} s on {run.hardware}
- device {m.device.value} ({m.device.reason}), precision {m.precision.value}
  ({m.precision.reason})
- export: at most {m.parity.max_abs_diff:.1e} from torch (fp32, CPU) on {m.parity.n_images}
  {"training" if m.measured else "held-out"} images, from file bytes to probabilities,
  top-1 agreement {m.parity.top1_agreement:.0%}
- data hash `{m.dataset.hash[:16]}`, labelled rows `{m.indices_hash[:16]}`{_corrected(m)}
- {", ".join(f"{name} {version}" for name, version in m.packages.items())}

## Limits

It knows only the classes above and answers with one of them for every image. It was measured on
images like its training images; on others expect less.
"""


def _labels(m: Manifest) -> str:
    if m.measured is not None:
        return (
            f"The final model, trained on all {m.n_labels_train:,} labels of `{m.dataset.name}`, "
            f"those\nof the test and validation images among them, as `{m.measured.name}` was on "
            f"{m.measured.n_labels_train:,}."
        )
    chosen = "choose the epoch and" if m.recipe.get("schedule") == "plateau" else "fit"
    return (
        f"Trained on {m.fraction * 100:.6g} % of the labels of `{m.dataset.name}`: "
        f"{m.n_labels_train:,} to\ntrain, {m.n_labels_val:,} to {chosen} the temperature. No other "
        "label was used. The\ntest images were not used for model selection."
    )


def _whose(m: Manifest) -> str:
    if m.measured is None:
        return ""
    return (
        f"**The figures are those of `{m.measured.name}`** (version `{m.measured.version}`), since "
        "no label is\nleft to measure this model with.\n\n"
    )


def _predicted(m: Manifest) -> str:
    p = m.predicted
    if p is None:
        return ""
    largest = sorted(zip(p.classes, m.class_names, strict=True), key=lambda row: -row[0])[:10]
    shares = ", ".join(f"{escaped(name)} {n / p.n:.1%}" for n, name in largest)
    more = f"; {len(p.classes) - 10} more in `manifest.json`" if len(p.classes) > 10 else ""
    sure = sum(n for n, bound in zip(p.confidence[1:], p.bounds, strict=True) if bound >= 0.9)
    unsure = sum(n for n, bound in zip(p.confidence, p.bounds, strict=False) if bound <= 0.5)
    of = f", by `{m.measured.name}`" if m.measured else ""
    return f"""
Predicted classes on {p.split}{of}: {shares}{more}. The predicted class has a probability above
0.9 in {sure / p.n:.1%} of the images, and of at most 0.5 in {unsure / p.n:.1%}. The metrics of a
service compare its predictions with this.
"""


def _corrected(m: Manifest) -> str:
    done = [
        f"{n:,} training images {what}"
        for n, what in (
            (m.dataset.dropped, "left out (--drop)"),
            (m.dataset.relabelled, "with another label than the data (--relabel)"),
        )
        if n
    ]
    return "".join(f"\n- {each}" for each in done)


def _learned(m: Manifest) -> str:
    mirrored = ";\n  the graph averages an image and its mirror image" * bool(
        m.recipe.get("mirrored")
    )
    head = m.recipe.get("linear_head")
    if head is None:
        return f"{m.epochs} epochs, weights of\n  epoch {m.best_epoch}{mirrored}"
    weighted = "classes" if head["balanced"] else "labels"
    chosen = "by cross-validation"
    if head["accuracy"] is None:
        chosen = (
            "as in the measured model" if m.measured else "with too few labels to cross-validate"
        )
    said = (
        f"a linear head on frozen\n  features, L2 penalty {head['penalty']:g}, {weighted} weighted "
        f"equally, both {chosen}"
    )
    if n := head.get("n_unlabelled"):
        said += (
            f"; fitted again, all images\n  weighted equally, on the labels and on its answers to "
            f"{counted(n, 'image')} without labels,\n  after label propagation"
        )
    return said + mirrored


def pixels(size: int) -> str:
    """Describes the conversion of a file to the graph's input: Markdown with Python code.

    It computes what `bundle.preprocess.prepare` does.
    """
    return f"""```python
import numpy as np
from PIL import Image, ImageOps

def pixels(path, size={size}):
    with Image.open(path) as file:
        file.draft(file.mode, (2 * size, 2 * size))  # a JPEG, decoded at a smaller scale
        image = ImageOps.exif_transpose(file).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    image = image.resize((size, size), Image.Resampling.BILINEAR, box, reducing_gap=3.0)
    return np.asarray(image)  # uint8 [size, size, 3]
```
"""


def _warnings(run: Run) -> str:
    return "".join(f"**Warning**: {warning}.\n\n" for warning in run.warnings)


def _without_labels(m: Manifest) -> str:
    said = ""
    if m.extractor is not None and m.extractor.objective in ("supervised", "self-supervised"):
        labels = "with" if m.extractor.objective == "supervised" else "without"
        images = f"images of `{m.extractor.dataset}`"
        if m.extractor.source is None:
            images = f"images that the file `{m.extractor.dataset}` does not name"
        said += (
            f"\n\nThe network began with third-party weights (`{m.extractor.version}`), trained "
            f"{labels} labels on {images}. "
            f"License of the weights: {m.extractor.license or 'not known'}; source: "
            f"{m.extractor.source or 'a file'}."
        )
    elif m.extractor is not None:
        said += (
            f"\n\nThe network began with a feature extractor (`{m.extractor.version}`, "
            f"{m.extractor.objective}) trained without labels on images of "
            f"`{m.extractor.dataset}`."
        )
    if m.n_unlabelled:
        said += f"\n\n{counted(m.n_unlabelled, 'other training image')} used as unlabelled data."
    return said


def _distilled(m: Manifest, run: Run) -> str:
    said, latency, teacher = "", run.latency, m.teacher
    if teacher is not None:
        said = (
            f"\n\nIt learned the answers of `{teacher.name}` {teacher.version} to "
            f"{teacher.n_images:,} training images (distillation)."
        )
    if latency is not None:
        said += (
            f"\n\nOne image takes {latency.p50_ms:.2f} ms (median CPU time in ONNX Runtime on one "
            f"thread of the machine below; `--max-latency {latency.limit_ms:g}`)"
        )
        before = latency.teacher_p50_ms
        said += "." if before is None else f", its teacher {before:.2f} ms."
    return said


def _variants(m: Manifest, run: Run) -> str:
    said = ""
    seen = "training" if m.measured else "held-out"
    for v in m.variants:
        shown, fp32, split = (
            (v.test, m.test, "test") if v.test and m.test else (v.val, m.val, "validation")
        )
        said += (
            f"\n`model.{v.precision}.onnx` is the same model in {v.precision}: accuracy "
            f"{shown.accuracy:.4f} on {split} where fp32 has {fp32.accuracy:.4f}, the same class "
            f"on {v.agreement:.2%} of {v.n_compared:,} {seen} images"
        )
        if v.precision == "fp16" and v.provider.startswith("CPU"):
            said += " (judged on a CPU, which rounds weights and maps to fp16 and computes in fp32)"
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
