// Saving a step as a skill: what it would be, the test that it has to pass, and the verdict.

import { find, make } from "./dom.js";
import { followWork, loadDocument } from "./http.js";
import { openDialog, startClock } from "./work_dialog.js";

/** Let people save the step of a panel as a skill. */
export function startSaving(panel, session, run) {
  find("[data-save-skill]", panel)?.addEventListener("click", () => openPreview(panel, `/s/${session}/${run}/skill`));
}

async function openPreview(panel, address) {
  const preview = make("div", {}, make("p", { className: "faint" }, "Loading …"));
  const save = make("button", { className: "primary", disabled: true }, "Test and save");
  const close = make("button", { type: "button" }, "Close");
  const problem = make("p", { className: "alert", role: "alert", hidden: true });
  const progress = make("p", { className: "progress", role: "status", hidden: true });
  const verdict = make("div", { className: "verdict", role: "status" });
  const form = make(
    "form",
    {},
    make("h2", {}, `Save step ${panel.dataset.step} as a skill`),
    make("p", { className: "faint" }, "Code imports a skill by its name. It is used only if its test passes: the recorded answers are given to it again, in a sandbox of its own."),
    preview,
    problem,
    progress,
    verdict,
    make("div", { className: "dialog-buttons" }, save, close),
  );
  const dialog = openDialog("Save as a skill", form);
  let work = null;
  close.addEventListener("click", () => (work ? work.abort() : dialog.close()));
  dialog.addEventListener("close", () => work?.abort());
  const fail = (error) => {
    problem.textContent = error.message;
    problem.hidden = false;
  };
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    work = new AbortController();
    save.disabled = true;
    problem.hidden = true;
    close.textContent = "Cancel";
    const clock = startClock(progress, "Its test begins.");
    try {
      const fields = new FormData(form);
      const body = { name: fields.get("name") ?? "", summary: fields.get("summary") ?? "" };
      const saved = await followWork(address, body, clock.say, work.signal);
      showVerdict(verdict, saved, find(".skill-preview", preview));
      save.hidden = true;
    } catch (error) {
      if (error.name === "AbortError") progress.textContent = "Cancelled: nothing was saved.";
      else fail(error);
      save.disabled = false;
    } finally {
      clock.stop();
      progress.hidden = !work.signal.aborted;
      close.textContent = "Close";
      work = null;
    }
  });
  try {
    preview.replaceChildren(document.adoptNode(find(".skill-preview", await loadDocument(address))));
    save.disabled = false;
    find("#skill-name", preview)?.focus();
  } catch (error) {
    preview.replaceChildren();
    fail(error);
    close.focus();
  }
}

function showVerdict(place, saved, preview) {
  const link = make("a", { href: `/skills/${saved.name}?version=${saved.version}` }, `${saved.name}, version ${saved.version}`);
  const already = saved.already_existed ? " already" : "";
  const parts = [
    make("h3", {}, "Verdict ", make("span", { className: `pill pill-${saved.state}` }, saved.state)),
    make("p", {}, link, ` is ${saved.state_words}${already}.`),
    ...saved.reasons.map((reason) => make("p", { className: "notice" }, reason)),
  ];
  const removed = listRemoved(preview, saved);
  if (removed.length) parts.push(make("p", {}, `The test showed that these make no difference, so they stayed as they are in the code: ${removed.join(", ")}.`));
  if (saved.note) parts.push(make("p", { className: "faint" }, saved.note));
  parts.push(make("pre", { className: "text" }, saved.usage));
  place.replaceChildren(...parts);
  place.scrollIntoView({ block: "nearest" });
}

/** Return the parameters that were shown and that the saved version does not have. */
function listRemoved(preview, saved) {
  const names = [...preview.querySelectorAll("[aria-label=Parameters] tbody tr td:first-child")].map((cell) => cell.textContent);
  return names.filter((name) => !saved.parameters.includes(name));
}
