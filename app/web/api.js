// Requests to the server that this page came from, and its event streams.

import { forBrowser, forTab } from "./storage.js";

const KEY = "easel.key";

/** An error that the server answered with, or the loss of the connection (`status` 0). */
export class ApiError extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Keep the API key for this tab, or in the browser for later if `remember`. */
export function setKey(key, remember) {
  forgetKey();
  (remember ? forBrowser : forTab).setItem(KEY, key);
}

export function forgetKey() {
  forBrowser.removeItem(KEY);
  forTab.removeItem(KEY);
}

export function hasKey() {
  return key() !== null;
}

function key() {
  return forTab.getItem(KEY) ?? forBrowser.getItem(KEY);
}

/** Returns the served model as `/v1/models` describes it. Throws ApiError. */
export async function servedModel() {
  const response = await request("/v1/models");
  return (await response.json()).data[0];
}

/** Returns "ready", "loading", or "unreachable". */
export async function serverState() {
  try {
    return (await fetch("/health/ready")).ok ? "ready" : "loading";
  } catch {
    return "unreachable";
  }
}

/** Yields the chunks of a streamed chat completion. Throws ApiError, or AbortError when stopped. */
export async function* chat(body, signal) {
  const response = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message, response.status, chunk.error.code);
    yield chunk;
  }
  throw new ApiError("The connection ended before the answer did.", 0);
}

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (hasKey()) headers.authorization = `Bearer ${key()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError("The server can't be reached.", 0);
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw new ApiError(error?.message ?? response.statusText, response.status, error?.code);
}

/** Yields the data of each event of a stream. */
async function* events(stream) {
  let text = "";
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (text + value).split("\n");
      text = lines.pop();
      for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The connection was lost before the answer ended.", 0);
  } finally {
    reader.cancel().catch(() => {});
  }
}
