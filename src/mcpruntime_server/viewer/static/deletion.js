// Deleting a session, after a question.

import { find, make } from "./dom.js";
import { sendJson } from "./http.js";

/** Let people delete the session with a button, which pages of readers do not have. */
export function startDeletion(button, session) {
  button?.addEventListener("click", () => openDialog(session));
}

function openDialog(session) {
  const title = find(".crumbs h1").textContent;
  const problem = make("p", { className: "alert", role: "alert", hidden: true });
  const keep = make("button", { type: "button" }, "Keep it");
  const remove = make("button", { className: "danger" }, "Delete for good");
  const form = make(
    "form",
    {},
    make("h2", {}, `Delete ${title}?`),
    make("p", {}, "Its steps, output, files and attempts are erased, and nobody can get them back. Skills that were saved from it stay."),
    problem,
    make("div", { className: "dialog-buttons" }, keep, remove),
  );
  const dialog = make("dialog", { className: "try question-dialog" }, form);
  dialog.setAttribute("aria-label", "Delete the session");
  keep.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    remove.disabled = true;
    try {
      await sendJson(`/ui/api/sessions/${session}`, {}, "DELETE");
      location.assign("/");
    } catch (error) {
      problem.textContent = error.message;
      problem.hidden = false;
      remove.disabled = false;
    }
  });
  document.body.append(dialog);
  dialog.showModal();
  keep.focus();
}
