// A form to try an operation of the API: its parameters, its body, and the answer as it came.

import { html, milliseconds } from "./dom.js";
import { send, useKey } from "./service.js";

const SHOWN = 20_000; // characters of an answer

// The initial value of a parameter's field.
const hint = (schema) => ("default" in (schema ?? {}) ? String(schema.default) : "");

function field(label, input) {
  return html("label", {}, html("span", {}, label), input);
}

// In the first content type of the document: bytes are chosen, anything else is typed.
function bodyOf(operation) {
  const media = Object.entries(operation.requestBody?.content ?? {});
  if (!media.length) return null;
  const [type, { schema, example }] = media[0];
  if (type.startsWith("image/") || type === "application/octet-stream") {
    const input = html("input", { type: "file", required: operation.requestBody.required });
    return { input, label: "body: a file", type: "application/octet-stream", read: () => input.files[0] };
  }
  const input = html("textarea", { rows: 5, spellcheck: "false", required: operation.requestBody.required });
  input.value = JSON.stringify(example ?? schema?.examples?.[0] ?? {}, null, 2);
  return { input, label: `body: ${type}`, type, read: () => input.value };
}

function shown(text, type) {
  let whole = text;
  if (/json/.test(type)) {
    try {
      whole = JSON.stringify(JSON.parse(text), null, 2);
    } catch {
      // not JSON: shown as received
    }
  }
  return whole.length > SHOWN ? `${whole.slice(0, SHOWN)}\n… ${whole.length - SHOWN} characters more` : whole;
}

function outcome({ response, text, roundTrip }) {
  const headers = [...response.headers].map(([name, value]) => `${name}: ${value}`).join("\n");
  return [
    html("p", { class: response.ok ? "good" : "bad" }, html("b", {}, `${response.status} ${response.statusText}`), ` after ${milliseconds(roundTrip)}`),
    html("pre", { tabindex: "0", "aria-label": "Headers of the answer" }, headers),
    html("pre", { tabindex: "0", "aria-label": "Body of the answer" }, shown(text, response.headers.get("content-type") ?? "")),
  ];
}

export function trial(method, path, operation) {
  const parameters = (operation.parameters ?? []).filter((p) => p.in === "query" || p.in === "path");
  const inputs = parameters.map((p) =>
    html("input", { placeholder: hint(p.schema), required: p.in === "path", autocomplete: "off", spellcheck: "false" }));
  const body = bodyOf(operation);
  const key = html("input", { type: "password", autocomplete: "off", spellcheck: "false" });
  const answer = html("div", { class: "outcome", role: "status" });
  const form = html("form", { class: "trial" },
    parameters.map((p, index) => field(p.name, inputs[index])),
    body && field(body.label, body.input),
    operation.responses?.["401"] && field("API key, if one is needed", key),
    html("button", { class: "button" }, "Send"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const query = new URLSearchParams();
    let address = path.slice(1);
    parameters.forEach((p, index) => {
      const { value } = inputs[index];
      if (p.in === "path") address = address.replace(`{${p.name}}`, encodeURIComponent(value));
      else if (value) query.set(p.name, value);
    });
    const options = { method: method.toUpperCase() };
    if (body) Object.assign(options, { body: body.read(), headers: { "content-type": body.type } });
    answer.replaceChildren(html("p", {}, "Sent…"));
    if (key.value) useKey(key.value.trim());
    try {
      answer.replaceChildren(...outcome(await send(`${address || "."}${query.size ? `?${query}` : ""}`, options)));
    } catch (error) {
      answer.replaceChildren(html("p", { class: "bad" }, html("b", {}, "No answer"), ` ${error.message}`));
    }
  });
  return html("details", {}, html("summary", {}, "Try it"), form, answer);
}
