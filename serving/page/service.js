// The service as this page asks it. Each failure is a Problem with what the service itself said.

let key = null;

export function useKey(text) {
  key = text;
}

export class Problem extends Error {
  constructor(status, title, detail, requestId, retryAfter) {
    super(detail);
    Object.assign(this, { status, title, detail, requestId, retryAfter });
  }
}

async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  let response;
  let text;
  const start = performance.now();
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "No answer", "The service did not answer: it may be down, or the connection is.");
  }
  const roundTrip = performance.now() - start;
  const requestId = response.headers.get("x-request-id");
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    throw new Problem(response.status, response.statusText || "Unexpected answer", text.slice(0, 500), requestId);
  }
  if (!response.ok) {
    const wait = Number(response.headers.get("retry-after")) || null;
    throw new Problem(response.status, body.title ?? response.statusText, body.detail ?? "", body.request_id ?? requestId, wait);
  }
  return { body, headers: response.headers, roundTrip };
}

export const models = async () => (await ask("models")).body;

export const readiness = async () => (await ask("readyz")).body;

// The content type says bytes, whatever the file calls itself: the service tells by the content.
export async function classify(file, model, topK, signal) {
  const query = new URLSearchParams({ model, top_k: String(topK) });
  const { body, headers, roundTrip } = await ask(`classify?${query}`, {
    method: "POST",
    body: file,
    headers: { "content-type": "application/octet-stream" },
    signal,
  });
  const timing = {};
  for (const part of (headers.get("server-timing") ?? "").split(",")) {
    const match = part.match(/^\s*(\w+);dur=([\d.]+)/);
    if (match) timing[match[1]] = Number(match[2]);
  }
  return { classes: body, version: headers.get("x-model-version"), timing, roundTrip };
}
