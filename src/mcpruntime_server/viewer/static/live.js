// Follows a session: says when the connection is lost, and catches up when it is back.

import { find } from "./dom.js";
import { loadJson } from "./http.js";

const PATIENCE_MS = 1_500; // before a lost connection is worth a message
const RETRY_MS = 3_000;
const MAX_SHARE = 4; // of the time that loading takes, the pause after it

/** Call `onChange` for the current state of a session and after every change of it. */
export function followSession(session, onChange, onEnd) {
  const address = `/s/${session}/changes`;
  const update = onlyOnce(onChange);
  connect();

  function connect() {
    const source = new EventSource(address);
    source.addEventListener("open", () => showConnection(true));
    source.addEventListener("change", update);
    source.addEventListener("error", async (event) => {
      if (event.data) {
        source.close();
        onEnd(JSON.parse(event.data).detail);
        return;
      }
      showConnection(false);
      if (source.readyState !== EventSource.CLOSED) return; // it connects again by itself
      try {
        await loadJson(`/s/${session}/steps`);
      } catch (error) {
        if (error.status === 404) {
          onEnd("This session was deleted.");
          showConnection(true);
          return;
        }
      }
      setTimeout(connect, RETRY_MS);
    });
  }
}

let complaint = 0;

/** Say that the connection is lost, if it stays so; or that it is back. */
export function showConnection(isOpen) {
  const element = find("[data-connection]");
  clearTimeout(complaint);
  if (!element) return;
  if (isOpen) {
    element.hidden = true;
    return;
  }
  complaint = setTimeout(() => {
    element.textContent = "Connection lost. Trying again…";
    element.hidden = false;
  }, PATIENCE_MS);
}

/** Return a function that runs `work` once at a time, and once more if it was called meanwhile. */
function onlyOnce(work) {
  let isRunning = false;
  let isWanted = false;
  return async function run() {
    isWanted = true;
    if (isRunning) return;
    isRunning = true;
    while (isWanted) {
      isWanted = false;
      const start = performance.now();
      try {
        await work();
      } catch (error) {
        console.error(error);
      }
      const took = performance.now() - start;
      await new Promise((resolve) => setTimeout(resolve, took * MAX_SHARE));
    }
    isRunning = false;
  };
}
