// Trying a change: a step is executed again with other code or other answers, and compared.

import { announce, find, findAll, make } from "./dom.js";
import { followWork, loadJson, sendJson } from "./http.js";
import { showDifference } from "./differences.js";
import { describeRecorded, doWork, openDialog } from "./work_dialog.js";

const FAILED = /^(error|timeout|crashed)/;

/** Let people try changes of the step of a panel, fork there, and rewind to it. */
export function startChanges(panel, session, run) {
  find("[data-try]", panel)?.addEventListener("click", () => openChange(panel, session, run));
  find("[data-fork]", panel)?.addEventListener("click", (event) => fork(event.currentTarget, session, run));
  find("[data-pin]", panel)?.addEventListener("click", (event) => pin(event.currentTarget, run));
  find("[data-rewind]", panel)?.addEventListener("click", (event) => rewind(event.currentTarget, session, run));
}

async function fork(button, session, run) {
  button.disabled = true;
  try {
    const made = await sendJson(`/ui/api/sessions/${session}/fork`, { run });
    location.assign(`/s/${made.session}/${made.run}`);
  } catch (error) {
    announce(error.message, "error");
    button.disabled = false;
  }
}

async function pin(button, run) {
  const pinned = !button.dataset.pin;
  button.disabled = true;
  try {
    await sendJson(`/ui/api/runs/${run}/pin`, { pinned });
    button.dataset.pin = pinned ? "1" : "";
    button.textContent = pinned ? "Unpin" : "Pin";
  } catch (error) {
    announce(error.message, "error");
  } finally {
    button.disabled = false;
  }
}

async function rewind(button, session, run) {
  if (!button.dataset.isConfirmed) {
    button.dataset.isConfirmed = "1";
    button.textContent = "Rewind: are you sure?";
    return;
  }
  button.disabled = true;
  try {
    const position = await sendJson(`/ui/api/sessions/${session}/rewind`, { run });
    const left = position.not_undone.length;
    announce(`The session continues from step ${position.step}.${left ? ` Not undone: ${left} calls.` : ""}`);
  } catch (error) {
    announce(error.message, "error");
  } finally {
    button.disabled = false;
    delete button.dataset.isConfirmed;
    button.textContent = "Rewind";
  }
}

// the dialog ----------------------------------------------------------------------------------------

async function openChange(panel, session, run) {
  const code = findAll("[data-code] > [data-line] > code", panel).map((each) => each.textContent).join("\n");
  const editor = makeEditor(code, 18);
  editor.id = "try-code";
  const calls = make("div", { className: "try-calls" });
  const following = make("input", { type: "checkbox", id: "try-following" });
  const live = make("input", { type: "text", id: "try-live", placeholder: "none: recorded answers only", autocomplete: "off" });
  const start = make("button", { className: "primary" }, "Execute and compare");
  const close = make("button", { type: "button" }, "Close");
  const problem = make("p", { className: "alert", role: "alert", hidden: true });
  const progress = make("p", { className: "progress", role: "status", hidden: true });
  const form = make(
    "form",
    {},
    make("h2", {}, `Try a change of step ${panel.dataset.step}`),
    make("p", { className: "faint" }, "It is executed in a session of its own, with recorded answers. This session does not change."),
    make("label", { htmlFor: "try-code" }, "Code"),
    editor,
    make("label", { htmlFor: "try-live" }, "Servers and tools to call for real"),
    live,
    make("p", {}, following, make("label", { htmlFor: "try-following" }, " Execute the steps after it again, too")),
    calls,
    problem,
    progress,
    make("div", { className: "dialog-buttons" }, start, close),
  );
  const result = make("div", { className: "try-result" });
  const dialog = openDialog("Try a change", form, result);
  close.addEventListener("click", () => dialog.close());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    problem.hidden = true;
    result.replaceChildren();
    try {
      const body = { run, following: following.checked, answers: readAnswers(calls) };
      if (isEdited(editor)) body.code = editor.value;
      body.live = live.value.split(",").map((each) => each.trim()).filter(Boolean);
      const what = `The state before the step is rebuilt.${describeRecorded(panel)}`;
      const rerun = await doWork(start, progress, what, (signal, say) => followWork(`/s/${session}/rerun`, body, say, signal));
      await showRerun(result, run, rerun);
    } catch (error) {
      problem.textContent = error.message;
      problem.hidden = false;
    } finally {
      progress.hidden = true;
    }
  });
  await listCalls(calls, live, run);
}

async function listCalls(place, live, run) {
  const { calls } = await loadJson(`/ui/api/runs/${run}/calls`);
  if (!calls.length) return;
  const called = calls.map(({ target }) => target).find((target) => target.startsWith("tools."));
  if (called) live.placeholder += `; ${called.replace("tools.", "")} is a tool of this step`;
  place.append(make("h3", {}, "Recorded answers"));
  for (const call of calls) {
    const value = call.error === null ? JSON.stringify(call.value, null, 1) : call.error;
    const editor = makeEditor(value, 10);
    editor.setAttribute("aria-label", `Answer of call ${call.number}`);
    editor.dataset.call = call.number;
    editor.dataset.isError = call.error === null ? "" : "1";
    const summary = make("summary", {}, make("span", { className: "num" }, `${call.number} `), make("code", {}, call.target.replace(/^tools\./, "")), make("code", { className: "faint" }, ` ${call.args}`));
    place.append(make("details", {}, summary, call.cut ? make("p", { className: "faint" }, "The answer is too long to be edited here.") : editor));
  }
}

/** Return a field for a text, which remembers what it shows: that may have other line ends. */
function makeEditor(text, maxRows) {
  const rows = Math.min(text.split("\n").length + 1, maxRows);
  const editor = make("textarea", { value: text, rows, spellcheck: false });
  editor.dataset.shown = editor.value;
  return editor;
}

const isEdited = (editor) => editor.value !== editor.dataset.shown;

function readAnswers(place) {
  const changed = findAll("textarea", place).filter(isEdited);
  return changed.map((each) => {
    const call = Number(each.dataset.call);
    if (each.dataset.isError) return { call, error: each.value };
    try {
      return { call, value: JSON.parse(each.value) };
    } catch {
      throw new Error(`The answer of call ${call} is not valid JSON.`);
    }
  });
}

async function showRerun(place, run, rerun) {
  const title = make("h2", { tabIndex: -1 }, "What is different");
  place.replaceChildren(title);
  place.append(make("p", {}, make("a", { href: `/s/${rerun.session}` }, "Open the session of the attempt")));
  const outcome = place.appendChild(make("div", { className: "outcomes" }));
  const statuses = []; // of the steps that ended differently
  let equal = []; // steps without a difference, one after the other
  for (const [position, { run: original }] of rerun.comparisons.entries()) {
    const { run: again, step } = rerun.runs[position];
    const found = await loadJson(`/ui/api/runs/${original}/diff?other=${again}`);
    if (found.equal && !found.damage.length) {
      equal.push(step);
    } else {
      if (equal.length) place.append(describeEqual(equal));
      equal = [];
      place.append(showDifference(step, found));
      if (found.status) statuses.push({ step, ...found.status });
    }
  }
  if (equal.length) place.append(describeEqual(equal));
  outcome.append(...describeOutcomes(statuses));
  place.scrollIntoView({ block: "start" });
  title.focus({ preventScroll: true });
}

/** Return what the change has mended, and what it has broken; `a` is how a step ended, `b` how it ends now. */
function describeOutcomes(statuses) {
  const mended = statuses.filter(({ a, b }) => FAILED.test(a) && !FAILED.test(b));
  const broken = statuses.filter(({ a, b }) => !FAILED.test(a) && FAILED.test(b));
  const parts = [];
  if (mended.length) parts.push(make("p", { className: "is-ok" }, `${nameSteps(mended)} failed in the recording, and not in the attempt.`));
  if (broken.length) parts.push(make("p", { className: "is-bad" }, `${nameSteps(broken)} failed in the attempt, and not in the recording.`));
  return parts;
}

const nameSteps = (found) => `${found.length === 1 ? "Step" : "Steps"} ${found.map(({ step }) => step).join(", ")}`;

/** Return an element for steps in which nothing differs. */
function describeEqual(steps) {
  const text = steps.length === 1 ? `Step ${steps[0]}` : `Steps ${steps[0]} to ${steps.at(-1)}`;
  return make("section", { className: "difference" }, make("h3", {}, text), make("p", { className: "faint" }, "Nothing differs."));
}
