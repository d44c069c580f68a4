// The learning curve: test accuracy over labels, on a logarithmic axis, with 95 % intervals.

import { count, fraction, html, listed, percent, svg } from "./dom.js";

// Models that differ only in labels and seed are one line: NAME is <series>-<percent or final>[-s<seed>].
export function seriesOf(model) {
  return model.name.replace(/-([\d.]+|final)(-s\d+)?$/, "");
}

// Labels that a model was given, for training and validation.
export const labelsOf = (model) => model.n_labels_train + model.n_labels_val;

// A final model has the accuracy of another one, with fewer labels: it is not a point of the curve.
export const measured = (models) => models.filter((m) => m.test && !m.measured);

export function grouped(models) {
  const series = new Map();
  for (const model of measured(models)) {
    const name = seriesOf(model);
    if (!series.has(name)) series.set(name, []);
    series.get(name).push(model);
  }
  for (const members of series.values()) members.sort((a, b) => labelsOf(a) - labelsOf(b));
  return series;
}

// Half of the 95 % interval that so many test images leave.
export const margin = (test) => 1.96 * Math.sqrt((test.accuracy * (1 - test.accuracy)) / test.n);

const mean = (numbers) => numbers.reduce((a, b) => a + b, 0) / numbers.length;

function scales(models, width, height, pad) {
  const labels = models.map((m) => labelsOf(m));
  const lows = models.map((m) => m.test.accuracy - margin(m.test));
  const highs = models.map((m) => m.test.accuracy + margin(m.test));
  const span = Math.max(...highs) - Math.min(...lows);
  const step = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2].find((s) => span / s <= 5) ?? 0.25;
  const bottom = Math.max(0, Math.floor(Math.min(...lows) / step) * step);
  const top = Math.min(1, Math.ceil(Math.max(...highs) / step) * step);
  const [first, last] = [Math.log(Math.min(...labels)), Math.log(Math.max(...labels))];
  const inset = Math.max(60, 0.1 * (width - pad.left - pad.right)); // values are left of their points
  const room = width - pad.left - pad.right - 2 * inset;
  return {
    x: (n) => pad.left + inset + (last > first ? (Math.log(n) - first) / (last - first) : 0.5) * room,
    y: (a) => height - pad.bottom - ((a - bottom) / (top - bottom || 1)) * (height - pad.top - pad.bottom),
    ticks: Array.from({ length: Math.round((top - bottom) / step) + 1 }, (_, i) => bottom + i * step),
    digits: step < 0.01 ? 1 : 0,
  };
}

export function draw(models, width) {
  const series = grouped(models);
  const measured = [...series.values()].flat();
  const height = Math.max(240, Math.min(380, width * 0.55));
  const pad = { left: 44, right: 12, top: 20, bottom: 50 };
  const { x, y, ticks, digits } = scales(measured, width, height, pad);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": sentence(series) });
  for (const tick of ticks) {
    root.append(
      svg("line", { class: "grid", x1: pad.left, x2: width - pad.right, y1: y(tick), y2: y(tick) }),
      svg("text", { x: pad.left - 8, y: y(tick) + 4, "text-anchor": "end" }, `${(tick * 100).toFixed(digits)} %`),
    );
  }
  let right = -Infinity;
  const counts = [...new Set(measured.map((m) => labelsOf(m)))].sort((a, b) => a - b);
  for (const n of counts) {
    const last = counts.at(-1);
    if (x(n) - right < 54 || (n !== last && x(last) - x(n) < 54)) continue; // it would touch another
    right = x(n);
    root.append(
      svg("text", { x: x(n), y: height - pad.bottom + 22, "text-anchor": "middle" }, count(n)),
    );
  }
  root.append(svg("text", { x: width - pad.right, y: height - 6, "text-anchor": "end" }, "labels (logarithmic)"));

  [...series].forEach(([name, members], index) => {
    const group = svg("g", { class: `hue${index % 5}` });
    const steps = new Map();
    for (const m of members) steps.set(labelsOf(m), [...(steps.get(labelsOf(m)) ?? []), m.test.accuracy]);
    const means = [...steps].map(([n, accuracies]) => [x(n), y(mean(accuracies)), mean(accuracies)]);
    group.append(svg("path", { class: "line", d: `M${means.map(([a, b]) => `${a.toFixed(1)} ${b.toFixed(1)}`).join("L")}` }));
    for (const m of members) {
      const [cx, half] = [x(labelsOf(m)), margin(m.test)];
      group.append(
        svg("line", { class: "error", x1: cx, x2: cx, y1: y(m.test.accuracy - half), y2: y(Math.min(1, m.test.accuracy + half)) }),
        svg("circle", { class: "dot", cx, cy: y(m.test.accuracy), r: 5 }, svg("title", {}, `${m.name}: ${percent(m.test.accuracy)}`)),
      );
    }
    if (series.size === 1) {
      let before = -Infinity;
      means.forEach(([cx, cy, accuracy], i) => {
        const end = means.at(-1)[0];
        if (cx - before < 54 || (i < means.length - 1 && end - cx < 54)) return; // it would touch another
        before = cx;
        group.append(svg("text", { class: "value", x: cx - 9, y: cy - 9, "text-anchor": "end" }, percent(accuracy)));
      });
    } else {
      group.append(svg("text", { class: "series", x: width - pad.right, y: height - pad.bottom - 10 - 16 * (series.size - 1 - index), "text-anchor": "end" }, name));
    }
    root.append(group);
  });
  return root;
}

export function sentence(series) {
  return [...series]
    .map(([name, members]) => `${name}: ${members.map((m) => `${percent(m.test.accuracy)} with ${count(labelsOf(m))} labels`).join(", ")}`)
    .join("; ");
}

// Whether there is a line to draw: models of one series with different numbers of labels.
export const isCurve = (members) => labelsOf(members[0]) !== labelsOf(members.at(-1));

// The takeaway of a line of models; of a single number of labels, its accuracy.
export function gain(members) {
  const [first, last] = [members[0], members.at(-1)];
  if (!isCurve(members)) {
    const labels = `with ${count(labelsOf(first))} labels`;
    if (members.length === 1) return `${percent(first.test.accuracy)} ${labels}.`;
    const accuracies = members.map((m) => m.test.accuracy);
    return `${percent(Math.min(...accuracies))} to ${percent(Math.max(...accuracies))} ${labels}.`;
  }
  const times = labelsOf(last) / labelsOf(first);
  const points = (last.test.accuracy - first.test.accuracy) * 100;
  return `${Number(times.toFixed(times < 10 ? 1 : 0))} times the labels ${points < 0 ? "cost" : "bought"} ${Math.abs(points).toFixed(1)} points of accuracy: from ${percent(first.test.accuracy)} to ${percent(last.test.accuracy)}.`;
}

// What the figures are based on: the test images of each data set.
export function ground(models, drawn) {
  const sets = new Map();
  for (const m of models) sets.set(m.dataset, new Set(sets.get(m.dataset)).add(m.test.n));
  const tests = [...sets].map(([name, n]) => `${[...n].map(count).join(" or ")} test images of ${name}`);
  const intervals = drawn ? " Thin bars are 95\u00a0% intervals." : "";
  return `Measured on ${listed(tests)} that no model has seen.${intervals}`;
}

export function table(models) {
  const rows = [...grouped(models).values()].flat().map((m) =>
    html("tr", {},
      html("th", { scope: "row" }, m.name),
      html("td", {}, `${fraction(m.fraction)} %`),
      html("td", {}, count(labelsOf(m))),
      html("td", {}, `${percent(m.test.accuracy, 2)} ± ${(margin(m.test) * 100).toFixed(1)}`),
      html("td", {}, m.test.f1.toFixed(4)),
    ));
  const head = ["model", "share", "labels", "accuracy", "F1"].map((text) => html("th", { scope: "col" }, text));
  return html("table", {}, html("thead", {}, html("tr", {}, head)), html("tbody", {}, rows));
}
