// The page's client of the service. Each failure is a Problem with the service's own message.

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

function withKey(options) {
  const headers = new Headers(options.headers);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  return { ...options, headers, cache: "no-store" };
}

// The response, whatever its status.
export async function send(path, options) {
  const start = performance.now();
  const response = await fetch(path, withKey(options));
  const text = await response.text();
  return { response, text, roundTrip: performance.now() - start };
}

// Whether a file is still there as it was chosen: otherwise `fetch` fails as without a connection.
const readable = (file) => file.slice(0, 1).arrayBuffer().then(() => true, () => false);

async function ask(path, options = {}, parse = JSON.parse) {
  let response;
  let text;
  const start = performance.now();
  try {
    response = await fetch(path, withKey(options));
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (options.body && !(await readable(options.body))) {
      throw new Problem(0, "The file cannot be read", "It is a folder, or was changed, moved or removed after it was chosen: choose it again.");
    }
    throw new Problem(0, "No answer", "The service did not answer: it may be down, or the connection is.");
  }
  const roundTrip = performance.now() - start;
  const requestId = response.headers.get("x-request-id");
  let body;
  try {
    body = response.ok ? parse(text) : JSON.parse(text);
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

export const doubtful = async () => new Blob([(await ask("doubtful.csv", {}, String)).body], { type: "text/csv" });

// The content type says bytes, whatever the file's type: the service detects it from the content.
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
