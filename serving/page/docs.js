// The OpenAPI document as a page.

import { byId, html } from "./dom.js";
import { trial } from "./trial.js";

const METHODS = ["get", "post", "put", "patch", "delete"];
let schemas = {};

const named = (schema) => schema.$ref?.split("/").at(-1);
const resolved = (schema) => (schema.$ref ? schemas[named(schema)] : schema);

// A schema in a few words: integer ≥ 1, list of Class, one of "cpu" or "cuda".
function words(schema) {
  if (!schema) return "";
  if (schema.$ref) return named(schema);
  if (schema.oneOf || schema.anyOf) return (schema.oneOf ?? schema.anyOf).filter((s) => s.type || s.$ref).map(words).join(" or ");
  if (schema.enum) return `one of ${schema.enum.map((value) => JSON.stringify(value)).join(", ")}`;
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${words(schema.items ?? {}) || "anything"}`;
  if (schema.contentMediaType) return `bytes of ${schema.contentMediaType}`;
  const parts = [[schema.type].flat().join(" or ")];
  if (schema.contentEncoding) parts.push(schema.contentEncoding);
  if ("minimum" in schema) parts.push(`≥ ${schema.minimum}`);
  if ("exclusiveMinimum" in schema) parts.push(`> ${schema.exclusiveMinimum}`);
  if ("maximum" in schema) parts.push(`≤ ${schema.maximum}`);
  if ("default" in schema) parts.push(`default ${JSON.stringify(schema.default)}`);
  if (schema.pattern) parts.push(`like ${schema.pattern}`);
  return parts.filter(Boolean).join(", ");
}

// The shape of a JSON value, one line a member.
function shape(schema, indent = "", within = []) {
  const name = named(schema);
  if (name && within.includes(name)) return name;
  const path = name ? [...within, name] : within;
  const whole = resolved(schema);
  if (whole.oneOf && !whole.properties) return whole.oneOf.map((s) => shape(s, indent, path)).join(`\n${indent}or\n${indent}`);
  if (whole.type === "array") return `[${shape(whole.items, indent, path)}, …]`;
  if (whole.type === "object" && whole.properties) {
    const inner = `${indent}  `;
    const members = Object.entries(whole.properties).map(([key, value]) => {
      const optional = whole.required?.includes(key) ? "" : "?";
      return `${inner}"${key}"${optional}: ${shape(value, inner, path)}`;
    });
    return `{\n${members.join(",\n")}\n${indent}}`;
  }
  return words(whole);
}

function rows(entries) {
  return html("table", {}, html("tbody", {}, entries.map(([name, ...rest]) =>
    html("tr", {}, html("th", { scope: "row" }, name), html("td", {}, rest)))));
}

const small = (text) => (text ? html("small", {}, text) : null);

function content(media) {
  const parts = [];
  for (const [type, { schema }] of Object.entries(media ?? {})) {
    const text = schema ? shape(schema) : "";
    parts.push(html("h3", {}, type), text.includes("\n") ? html("pre", { tabindex: "0" }, text) : html("p", {}, text));
  }
  return parts;
}

function example(method, path, operation) {
  const url = new URL(path.slice(1), location.href.replace(/docs[^/]*$/, ""));
  const [[type, media] = []] = Object.entries(operation.requestBody?.content ?? {});
  if (!type) return `curl '${url}'`;
  if (!media.example) return `curl --data-binary @image.png '${url}'`;
  return `curl -H 'Content-Type: ${type}' -d '${JSON.stringify(media.example)}' '${url}'`;
}

function section(method, path, operation) {
  const parts = [
    html("h2", {}, html("b", {}, method.toUpperCase()), path),
    html("p", {}, operation.summary ?? ""),
    operation.description ? html("p", {}, operation.description) : null,
    html("h3", {}, "Example"),
    html("pre", { tabindex: "0" }, example(method, path, operation)),
    trial(method, path, operation),
  ];
  if (operation.parameters?.length) {
    parts.push(html("h3", {}, "Parameters"), rows(operation.parameters.map((p) =>
      [p.name, `${p.description ?? ""}`, small(`${p.in}${p.required ? ", required" : ""}: ${words(p.schema)}`)])));
  }
  if (operation.requestBody) {
    parts.push(html("h3", {}, "Body"), html("p", {}, operation.requestBody.description ?? ""), ...content(operation.requestBody.content));
  }
  const answers = Object.entries(operation.responses ?? {});
  for (const [status, answer] of answers.filter(([status]) => status.startsWith("2"))) {
    parts.push(html("h3", {}, `Answer ${status}`), answer.description === operation.summary ? null : html("p", {}, answer.description), ...content(answer.content));
    const headers = Object.entries(answer.headers ?? {});
    if (headers.length) parts.push(html("h3", {}, "Headers"), rows(headers.map(([name, header]) => [name, header.description ?? ""])));
  }
  const problems = answers.filter(([status]) => !status.startsWith("2"));
  if (problems.length) parts.push(html("h3", {}, "Problems, as RFC 9457 describes them"), rows(problems.map(([status, answer]) => [status, answer.description])));
  return html("section", { class: "operation", id: anchor(method, path), "aria-label": `${method.toUpperCase()} ${path}` }, parts.filter(Boolean));
}

const anchor = (method, path) => `${method}${path.replace(/[^a-z0-9]+/gi, "-")}`;

async function load() {
  const response = await fetch("openapi.json");
  const text = await response.text();
  if (!response.ok) throw new Error(`${response.status}: ${text.slice(0, 300)}`);
  const document = JSON.parse(text);
  schemas = document.components?.schemas ?? {};
  const operations = Object.entries(document.paths).flatMap(([path, item]) =>
    METHODS.filter((method) => item[method]).map((method) => [method, path, item[method]]));
  byId("about").textContent = document.info.description ?? "";
  byId("state").textContent = `${document.info.title} ${document.info.version}`;
  byId("state").className = "state ready";
  byId("contents").replaceChildren(html("ol", {}, operations.map(([method, path]) =>
    html("li", {}, html("a", { href: `#${anchor(method, path)}` }, `${method.toUpperCase()} ${path}`)))));
  byId("operations").replaceChildren(...operations.map((operation) => section(...operation)));
  if (location.hash) byId(location.hash.slice(1))?.scrollIntoView();
}

load().catch((error) => {
  byId("state").className = "state down";
  byId("state").textContent = "Not available";
  byId("operations").replaceChildren(html("p", { role: "alert" }, `The description could not be read: ${error.message}`));
});
