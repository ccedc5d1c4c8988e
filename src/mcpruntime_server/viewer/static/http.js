// Requests to this server. Parts of pages come as documents that the browser has parsed without
// executing anything, so no text ever becomes markup here.

export class RequestFailed extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const csrfToken = () => document.querySelector("meta[name=csrf-token]").content;

/** Return the document at an address; `signal` aborts the request. */
export function loadDocument(address, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("GET", address);
    request.responseType = "document";
    request.onload = () => {
      if (new URL(request.responseURL).pathname === "/login") {
        location.reload();
      } else if (request.status === 200 && request.response) {
        resolve(request.response);
      } else {
        const parts = [...(request.response?.querySelectorAll("[data-problem]") ?? [])];
        const text = parts.map((each) => each.textContent).join(" ");
        reject(new RequestFailed(request.status, text || "The server has failed."));
      }
    };
    request.onerror = () => reject(new RequestFailed(0, "The server does not answer."));
    request.onabort = () => reject(new DOMException("", "AbortError"));
    signal?.addEventListener("abort", () => request.abort());
    request.send();
  });
}

/** Return the JSON data at an address. */
export async function loadJson(address, signal) {
  return readAnswer(await tryFetch(address, { signal, credentials: "same-origin" }));
}

/** Return the file at an address, with its name. */
export async function loadFile(address, signal) {
  const response = await tryFetch(address, { signal, credentials: "same-origin" });
  if (!response.ok) return readAnswer(response);
  const name = /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") ?? "");
  return { name: name?.[1] ?? "file", content: await response.blob() };
}

/** Send JSON data and return the answer. */
export async function sendJson(address, body = {}, method = "POST", signal = undefined) {
  const headers = { "Content-Type": "application/json", "X-CSRF-Token": csrfToken() };
  return readAnswer(await tryFetch(address, { method, headers, body: JSON.stringify(body), signal }));
}

/** Send JSON data to start work, call `onProgress` with what is done, and return what comes of it. */
export async function followWork(address, body, onProgress, signal) {
  const headers = { "Content-Type": "application/json", "X-CSRF-Token": csrfToken() };
  const response = await tryFetch(address, { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok) return readAnswer(response);
  for await (const { kind, data } of readEvents(response.body)) {
    if (kind === "progress") onProgress(data);
    else if (kind === "done") return data;
    else throw describeProblem(response.status, data);
  }
  throw new RequestFailed(0, "The connection was lost before the end.");
}

/** Yield the events of a stream as it arrives. */
async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  while (true) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { done: true };
    });
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const found = /^event: (\w+)\ndata: (.*)$/s.exec(part);
      if (found) yield { kind: found[1], data: JSON.parse(found[2]) };
    }
  }
}

function describeProblem(status, data) {
  return new RequestFailed(status, [data.detail, data.remedy].filter(Boolean).join(" "));
}

async function tryFetch(address, options) {
  try {
    return await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestFailed(0, "The server does not answer.");
  }
}

async function readAnswer(response) {
  if (response.status === 401) location.reload();
  const data = response.status === 204 ? null : await response.json();
  if (!response.ok) {
    throw describeProblem(response.status, data);
  }
  return data;
}
