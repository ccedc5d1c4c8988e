// Follows what changes on the server: says when the connection is lost, and catches up when it is back.

import { find } from "./dom.js";

const PATIENCE_MS = 1_500; // before a lost connection is worth a message
const RETRY_MS = 3_000;
const MAX_SHARE = 4; // of the time that loading takes, the pause after it
const MAX_PAUSE_MS = 2_000;

/** Call `onChange` with the current state of something and after every change of it.
 *
 * A page that nobody sees holds no connection: browsers have few for one server.
 */
export function followChanges(address, onChange, onEnd, maxPauseMs = MAX_PAUSE_MS) {
  const update = onlyOnce(onChange, maxPauseMs);
  let source = null;
  document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
  if (!document.hidden) connect();

  function disconnect() {
    source?.close();
    source = null;
  }

  function connect() {
    if (source) return;
    source = new EventSource(address);
    source.addEventListener("open", () => showConnection(true));
    source.addEventListener("change", update);
    source.addEventListener("error", async (event) => {
      if (event.data) {
        disconnect();
        onEnd(JSON.parse(event.data).detail);
        return;
      }
      showConnection(false);
      if (source?.readyState !== EventSource.CLOSED) return; // it connects again by itself
      disconnect();
      if (await isGone(address)) {
        showConnection(true);
        onEnd("This was deleted.");
      } else {
        setTimeout(() => document.hidden || connect(), RETRY_MS);
      }
    });
  }
}

/** Return whether an address no longer exists. */
async function isGone(address) {
  const request = new AbortController();
  try {
    const response = await fetch(address, { signal: request.signal });
    request.abort();
    if (response.status === 401) location.reload();
    return response.status === 404;
  } catch {
    return false;
  }
}

let complaint = 0;

/** Say that the connection is lost, if it stays so; or that it is back. */
export function showConnection(isOpen) {
  const element = find("[data-connection]");
  if (!element) return;
  if (isOpen) {
    clearTimeout(complaint);
    complaint = 0;
    element.hidden = true;
    return;
  }
  complaint ||= setTimeout(() => {
    element.textContent = "Connection lost. Trying again…";
    element.hidden = false;
  }, PATIENCE_MS);
}

/** Return a handler of events that runs `work` once at a time, then with the newest of those meanwhile. */
function onlyOnce(work, maxPauseMs) {
  let isRunning = false;
  let newest = null;
  return async function run(event) {
    newest = event;
    if (isRunning) return;
    isRunning = true;
    while (newest) {
      const state = JSON.parse(newest.data);
      newest = null;
      const start = performance.now();
      try {
        await work(state);
      } catch (error) {
        console.error(error);
      }
      const took = performance.now() - start;
      await new Promise((resolve) => setTimeout(resolve, Math.min(took * MAX_SHARE, maxPauseMs)));
    }
    isRunning = false;
  };
}
