// The page: an image comes in, every chosen model is queried in turn, and the answers appear side
// by side. The models are queried one after another, so that none waits for the others.

import { draw, gain, ground, grouped, measured, isCurve, labelsOf, seriesOf, table } from "./curve.js";
import { byId, count, fraction, html, listed, milliseconds, percent } from "./dom.js";
import { classify, doubtful, models as askModels, Problem, readiness, useKey } from "./service.js";

const TOP_K = 5;
const SHOWN = 4; // of more models than this, some are chosen
const SAME_FOR_ALL = [0, 400, 401, 403, 413, 415, 422, 429]; // errors of the request, not of one model

let models = [];
let chosen = [];
let image = null;
let running = null;
let redraw = null;

// The models

async function load() {
  try {
    models = await askModels();
  } catch (problem) {
    state("down", problem.status === 503 ? "Loading the models…" : "Not available");
    if (problem.status === 503) {
      setTimeout(load, (problem.retryAfter ?? 1) * 1000);
      return;
    }
    byId("models").setAttribute("aria-busy", "false");
    show(problem);
    return;
  }
  models.sort(byLabels);
  introduce();
  choose();
  curve();
  byId("models").setAttribute("aria-busy", "false");
  if (image) run(image); // it came before the models
  const n = `${models.length} model${models.length === 1 ? "" : "s"}`;
  try {
    const { device, keeps_doubtful: keeps } = await readiness();
    byId("doubtful").hidden = !keeps;
    if (!keeps && !image) byId("caption").textContent += " It goes to this service and is not kept.";
    state("ready", `${n} on ${device.kind === "cuda" ? "a GPU" : "the CPU"}`);
  } catch (problem) {
    state("down", `${n}, not ready`);
  }
}

const byLabels = (a, b) =>
  a.fraction - b.fraction || labelsOf(a) - labelsOf(b) || a.name.localeCompare(b.name);

const allSeries = () => new Set(models.map(seriesOf));

// The opening question applies to models that differ only in their labels.
function introduce() {
  if (models.length > 1 && allSeries().size === 1) return;
  const one = models.length === 1;
  byId("title").textContent = one ? "What does the model see?" : "What do the models see?";
  byId("subtitle").textContent = one ? `Show an image to ${models[0].name}.` : `Show an image to the models of ${listed([...allSeries()])}.`;
}

// A model was swapped while the page was open: its accuracy has changed.
async function refresh() {
  models = (await askModels()).sort(byLabels);
  chosen = chosen.map((old) => models.find((m) => m.name === old.name) ?? old);
  for (const [index, model] of chosen.entries()) {
    const place = byId("models").children[index].querySelector("[data-figure=accuracy]");
    place.textContent = accuracy(model);
  }
  curve();
}

function state(kind, text) {
  byId("state").className = `state ${kind}`;
  byId("state").textContent = text;
}

// Without a choice: every model if they are few, else 10, 50 and 100 % of the default's own line.
function choose() {
  if (models.length <= SHOWN) {
    chosen = [...models];
  } else {
    const best = models.find((m) => m.default) ?? models.at(-1);
    const line = models.filter((m) => seriesOf(m) === seriesOf(best));
    const near = (share) => line.reduce((a, b) => (Math.abs(b.fraction - share) < Math.abs(a.fraction - share) ? b : a));
    chosen = [...new Set([near(0.1), near(0.5), best])];
    const boxes = models.map((model) => {
      const box = html("input", { type: "checkbox", checked: chosen.includes(model) });
      box.addEventListener("change", () => {
        // By name: `refresh` replaces the models.
        const names = new Set(chosen.map((m) => m.name));
        if (box.checked) names.add(model.name);
        else names.delete(model.name);
        chosen = models.filter((m) => names.has(m.name));
        columns();
        if (image) run(image);
      });
      return html("label", {}, box, model.name);
    });
    const chooser = byId("chooser");
    chooser.replaceChildren(chooser.firstElementChild, ...boxes);
    chooser.hidden = false;
  }
  columns();
}

function columns() {
  byId("models").replaceChildren(...chosen.map(column));
}

function column(model) {
  const several = allSeries().size > 1 || chosen.filter((m) => m.fraction === model.fraction).length > 1;
  return html("li", { class: "model waiting", "data-model": model.name },
    html("h2", { class: "share" }, fraction(model.fraction), html("small", {}, "%")),
    html("p", { class: "labels" }, several ? `${model.name}, ` : "", `${count(labelsOf(model))} labels`),
    html("ol", { class: "classes", "aria-label": "Most probable classes" }, Array.from({ length: TOP_K }, (_, i) => row(i ? "\u00a0" : "–", "", 0))),
    html("dl", { class: "figures" },
      figure("Accuracy", accuracy(model), "accuracy", model.test && `On ${count(model.test.n)} test images${model.measured ? `, of ${model.measured}` : ""}`),
      figure("In the service", "–", "server", "Decoding, queue, inference and encoding, as the service timed them"),
      figure("Round trip", "–", "trip", "From this page to the service and back"),
    ),
    html("p", { class: "version" }, model.version),
    model.refused && html("p", { class: "refused" }, `Version ${model.refused.version} is refused: ${model.refused.error}`),
  );
}

// A class with its bar, which is animated unless the user prefers reduced motion.
function row(label, text, score) {
  const bar = html("span", { class: "fill" });
  bar.style.transform = "scaleX(0)";
  if (score) requestAnimationFrame(() => requestAnimationFrame(() => (bar.style.transform = `scaleX(${score})`)));
  return html("li", {},
    html("span", { class: "name", title: label }, label),
    html("span", { class: "score" }, text),
    html("span", { class: "track", "aria-hidden": "true" }, bar));
}

const accuracy = (model) => (model.test ? percent(model.test.accuracy) : "not tested");

function figure(name, value, key, title) {
  return html("div", { title }, html("dt", {}, name), html("dd", { "data-figure": key }, value));
}

// An image

async function run(file) {
  running?.abort();
  const { signal } = (running = new AbortController());
  columns();
  byId("models").classList.remove("failed");
  byId("problem").hidden = true;
  byId("verdict").textContent = "Asking each model in turn…";
  byId("models").setAttribute("aria-busy", "true");
  const answers = new Map();
  try {
    // By place: `refresh` may replace `chosen` meanwhile.
    for (const [index, model] of chosen.entries()) {
      const place = byId("models").children[index];
      try {
        const answer = await patiently(() => classify(file, model.name, TOP_K, signal), signal);
        answers.set(model, answer);
        fillIn(place, answer);
      } catch (problem) {
        if (!(problem instanceof Problem)) throw problem;
        if (SAME_FOR_ALL.includes(problem.status)) {
          show(problem);
          byId("models").classList.add("failed"); // nothing left to fill in
          break;
        }
        place.classList.replace("waiting", "failed");
        place.append(described(problem));
      }
    }
  } catch (error) {
    if (error.name === "AbortError") return; // another image has taken its place
    throw error;
  }
  byId("models").setAttribute("aria-busy", "false");
  byId("verdict").textContent = answers.size ? verdict(answers) : "";
  if ([...answers].some(([model, answer]) => answer.version !== model.version)) refresh().catch(show);
}

// A key's rate limit may be below what a comparison sends at once.
async function patiently(ask, signal) {
  try {
    return await ask();
  } catch (problem) {
    if (problem.status !== 429 || !problem.retryAfter) throw problem;
    await new Promise((resolve) => setTimeout(resolve, problem.retryAfter * 1000));
    signal.throwIfAborted();
    return ask();
  }
}

function fillIn(place, { classes, version, timing, roundTrip }) {
  place.classList.remove("waiting");
  place.querySelector(".version").textContent = version;
  place.querySelector(".classes").replaceChildren(...classes.map(({ label, score }) => row(label, percent(score), score)));
  const spent = Object.values(timing).reduce((a, b) => a + b, 0);
  const server = place.querySelector("[data-figure=server]");
  server.textContent = milliseconds(spent);
  server.parentElement.title = Object.entries(timing).map(([name, ms]) => `${name} ${ms.toFixed(2)} ms`).join(", ");
  place.querySelector("[data-figure=trip]").textContent = milliseconds(roundTrip);
}

// Models of different series may have different classes: they need not agree.
function verdict(answers) {
  const series = new Map();
  for (const [model, answer] of answers) {
    const name = seriesOf(model);
    series.set(name, new Map(series.get(name)).set(model, answer));
  }
  const several = series.size > 1;
  return [...series].map(([name, own]) => (several && own.size > 1 ? `${name}: ` : "") + agreement(own)).join(" ");
}

function agreement(answers) {
  const said = new Map();
  for (const [model, { classes }] of answers) {
    const label = classes[0].label;
    said.set(label, [...(said.get(label) ?? []), model]);
  }
  if (answers.size === 1) {
    const [[model, { classes }]] = answers;
    return `${model.name} says ${classes[0].label}, ${percent(classes[0].score)} sure.`;
  }
  if (said.size === 1) {
    const scores = [...answers.values()].map((a) => a.classes[0].score);
    return `All ${answers.size} say ${[...said.keys()][0]}; they are ${percent(Math.min(...scores))} to ${percent(Math.max(...scores))} sure.`;
  }
  const shares = [...answers.keys()].map((m) => m.fraction);
  const named = new Set(shares).size < shares.length ? (m) => m.name : (m) => `${fraction(m.fraction)} %`;
  const parts = [...said].map(([label, who]) => `${who.map(named).join(" and ")} say${who.length > 1 ? "" : "s"} ${label}`);
  return `They disagree: ${parts.join("; ")}.`;
}

function described(problem) {
  return html("div", { class: "problem" }, ...lines(problem));
}

function lines({ status, title, detail, requestId }) {
  return [
    html("b", {}, status ? `${status} ${title}` : title),
    html("p", {}, detail),
    requestId ? html("code", {}, `request ${requestId}`) : null,
  ].filter(Boolean);
}

function show(problem) {
  const place = byId("problem");
  place.replaceChildren(...lines(problem));
  place.hidden = false;
  if (problem.status === 401) byId("key").hidden = false;
}

byId("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = byId("secret").value.trim();
  if (!/^[\x21-\x7e]+$/.test(key)) {
    // Characters that a header cannot hold are not in any key.
    show({ title: "That is not an API key", detail: "A key has letters, digits, dashes and underscores." });
    return;
  }
  useKey(key);
  byId("key").hidden = true;
  byId("problem").hidden = true;
  byId("pick").focus();
  if (models.length && image) run(image);
  else load();
});

// The uploads that the service keeps, as a table for labelling. A link could not carry the key.
byId("export").addEventListener("click", async () => {
  try {
    const address = URL.createObjectURL(await doubtful());
    html("a", { href: address, download: "doubtful.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  } catch (problem) {
    show(problem);
  }
});

// Ways in: pick, drop, paste

function take(file) {
  if (!file) {
    byId("problem").replaceChildren(html("b", {}, "That was not a file"), html("p", {}, "Drop, paste or choose an image file; addresses are not fetched."));
    byId("problem").hidden = false;
    return;
  }
  image = file;
  const preview = byId("preview");
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.alt = `The image: ${file.name || "pasted"}`;
  preview.src = URL.createObjectURL(file);
  preview.hidden = false;
  byId("invitation").hidden = true;
  byId("drop").classList.add("full");
  byId("pick").textContent = "Choose another image";
  const size = file.size < 1e6 ? `${Math.max(1, Math.round(file.size / 1e3))} kB` : `${(file.size / 1e6).toFixed(1)} MB`;
  byId("caption").textContent = `${file.name || "Pasted image"}, ${size}`;
  preview.onload = () => {
    preview.classList.toggle("small", Math.max(preview.naturalWidth, preview.naturalHeight) < 200);
    byId("caption").textContent += `, ${preview.naturalWidth} × ${preview.naturalHeight} px`;
  };
  preview.onerror = () => {
    preview.hidden = true;
    byId("invitation").hidden = false;
    byId("caption").textContent += "; this browser cannot show it";
  };
  if (models.length) run(file);
}

byId("pick").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", (event) => {
  if (event.target.files.length) take(event.target.files[0]);
  event.target.value = ""; // the same file may be chosen again
});
let depth = 0;
document.addEventListener("dragenter", () => document.body.classList.toggle("dragging", ++depth > 0));
document.addEventListener("dragleave", () => document.body.classList.toggle("dragging", --depth > 0));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  document.body.classList.remove("dragging");
  take(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  if (event.target instanceof HTMLInputElement) return;
  take(event.clipboardData.files[0]);
});

// The learning curve

function curve() {
  const series = grouped(models);
  byId("curve").hidden = series.size === 0;
  if (!series.size) return;
  const several = series.size > 1;
  const drawn = [...series.values()].some(isCurve); // a lone point is no curve
  byId("curve-title").textContent = drawn ? "The learning curve" : "Accuracy";
  byId("curve-gain").replaceChildren(...[...series].map(([name, members]) =>
    html("p", {}, several ? html("b", {}, `${name}: `) : "", gain(members))));
  byId("curve-ground").textContent = ground(measured(models), drawn);
  byId("curve-table").replaceChildren(table(models));
  byId("curve-figures").open ||= !drawn;
  redraw?.disconnect();
  const plot = byId("plot");
  plot.hidden = !drawn;
  if (!drawn) return;
  let width = 0;
  redraw = new ResizeObserver(([entry]) => {
    const now = Math.round(entry.contentRect.width);
    if (now === width || now < 1) return;
    width = now;
    plot.replaceChildren(draw(models, width));
  });
  redraw.observe(plot);
}

load();
