// Dialogs, and what they say while something takes long.

import { make } from "./dom.js";
import { formatDuration } from "./formats.js";

const TICK_MS = 1_000;
const LONG_MS = 1_000; // of a step, whose replay is worth a word

/** Return a dialog that is open, and gone once it is closed. */
export function openDialog(label, ...children) {
  const dialog = make("dialog", { className: "try" }, ...children);
  dialog.setAttribute("aria-label", label);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Do work that takes a while: meanwhile a button cancels it, and an element says what is done. */
export async function doWork(button, status, text, work) {
  const request = new AbortController();
  const label = button.textContent;
  const cancel = (event) => {
    event.preventDefault();
    event.stopImmediatePropagation();
    request.abort();
  };
  const clock = startClock(status, text);
  button.textContent = "Cancel";
  button.addEventListener("click", cancel, { capture: true });
  button.closest("dialog")?.addEventListener("close", () => request.abort(), { once: true });
  try {
    return await work(request.signal, clock.say);
  } catch (error) {
    if (error.name === "AbortError") throw new Error("Cancelled.");
    throw error;
  } finally {
    clock.stop();
    status.replaceChildren();
    button.removeEventListener("click", cancel, { capture: true });
    button.textContent = label;
  }
}

/** Return a sentence on how long a step took when it was recorded, if that was long. */
export function describeRecorded(panel) {
  const ms = Number(panel.dataset.durationMs);
  return ms < LONG_MS ? "" : ` It took ${formatDuration(ms)} when it was recorded.`;
}

/** Show in an element what is done now, and for how long all of it has taken. */
export function startClock(element, text) {
  const start = performance.now();
  const time = make("span", { className: "num faint" });
  const words = make("span", {}, text);
  time.setAttribute("aria-hidden", "true"); // a screen reader would read every second
  element.replaceChildren(words, " ", time);
  element.hidden = false;
  const tick = () => {
    const seconds = Math.floor((performance.now() - start) / 1_000);
    if (seconds) time.textContent = formatDuration(seconds * 1_000).replace(".00", "");
  };
  const timer = setInterval(tick, TICK_MS);
  return {
    say: (what) => { words.textContent = what; },
    stop: () => clearInterval(timer),
  };
}
