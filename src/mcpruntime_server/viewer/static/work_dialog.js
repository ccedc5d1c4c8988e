// Dialogs, and what they say while something takes long.

import { make } from "./dom.js";
import { formatDuration } from "./formats.js";

const TICK_MS = 1_000;

/** Return a dialog that is open, and gone once it is closed. */
export function openDialog(label, ...children) {
  const dialog = make("dialog", { className: "try" }, ...children);
  dialog.setAttribute("aria-label", label);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
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
