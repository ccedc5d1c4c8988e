// The table of a data frame, which code writes before it can be downloaded.

import { find, make } from "./dom.js";
import { loadFile } from "./http.js";
import { openDialog, startClock } from "./work_dialog.js";

/** Let people download the value of a step, and see that it is being written. */
export function startTables(panel) {
  find("[data-frame]", panel)?.addEventListener("click", async (event) => {
    event.preventDefault();
    const link = event.currentTarget;
    link.closest("details").open = false;
    await download(link.href);
  });
}

async function download(address) {
  const work = new AbortController();
  const progress = make("p", { className: "progress", role: "status" });
  const close = make("button", { type: "button" }, "Cancel");
  const dialog = openDialog(
    "Value as CSV",
    make("h2", {}, "Value as CSV"),
    make("p", { className: "faint" }, "The journal has this table in part only. So the last expression of the step is evaluated again in the state after it, in a sandbox of its own, and written to a file."),
    progress,
    make("div", { className: "dialog-buttons" }, close),
  );
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => work.abort());
  const clock = startClock(progress, "The state after the step is rebuilt, and the table is written.");
  try {
    const { name, content } = await loadFile(address, work.signal);
    const link = make("a", { href: URL.createObjectURL(content), download: name });
    link.click();
    URL.revokeObjectURL(link.href);
    dialog.close();
  } catch (error) {
    if (error.name !== "AbortError") progress.replaceWith(make("p", { className: "alert", role: "alert" }, error.message));
    close.textContent = "Close";
  } finally {
    clock.stop();
  }
}
