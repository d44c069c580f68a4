// Helpers to make elements: no markup is ever parsed, so nothing from a file, a model or the
// service can inject any.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === false || value === null || value === undefined) continue;
    node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export const html = (tag, attributes, ...children) =>
  fill(document.createElement(tag), attributes, children);

export const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

export const byId = (id) => document.getElementById(id);

export const count = (number) => number.toLocaleString("en-US");

// Shares in percent: enough digits to tell 99.9 from 100.
export function percent(share, digits = 1) {
  const value = share * 100;
  if (share < 1 && value >= 100 - 0.5 * 10 ** -digits) return `>${(100 - 10 ** -digits).toFixed(digits)} %`;
  return `${value.toFixed(digits)} %`;
}

// 10, 0.5 or 33.3, as in a model's name.
export const fraction = (share) => String(Number((share * 100).toPrecision(4)));

export const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : count(Math.round(value))} ms`;

// a, b and c
export const listed = (words) => [words.slice(0, -1).join(", "), words.at(-1)].filter(Boolean).join(" and ");
