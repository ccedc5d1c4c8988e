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
        const heading = request.response?.querySelector("h1");
        reject(new RequestFailed(request.status, heading?.textContent ?? "The server has failed."));
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

/** Send JSON data and return the answer. */
export async function sendJson(address, body = {}, method = "POST") {
  const headers = { "Content-Type": "application/json", "X-CSRF-Token": csrfToken() };
  return readAnswer(await tryFetch(address, { method, headers, body: JSON.stringify(body) }));
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
    throw new RequestFailed(response.status, [data.detail, data.remedy].filter(Boolean).join(" "));
  }
  return data;
}
