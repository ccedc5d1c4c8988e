// Questions to the state after a step, and the variables that it has.

import { find, make } from "./dom.js";
import { loadJson, sendJson } from "./http.js";
import { doWork } from "./work_dialog.js";

const CHANGES = { added: "new", changed: "changed", unchanged: "" };

/** Let people ask the state after the step of a panel. */
export function startQuestions(panel, session, run) {
  const form = find("[data-ask]", panel);
  if (!form || form.dataset.isStarted) return;
  form.dataset.isStarted = "1";
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    await ask(form, run, find("[data-answers]", panel));
  });
  find("[data-variables]", panel).addEventListener("click", async (event) => {
    await showVariables(event.currentTarget, session, run, find("[data-variable-list]", panel));
  });
}

async function ask(form, run, answers) {
  const button = find("button", form);
  const code = form.elements.namedItem("code").value;
  const state = find("[data-ask-state]", form.parentElement);
  try {
    const answer = await doWork(button, state, "The state after this step is rebuilt, and asked.", (signal) =>
      sendJson(`/ui/api/runs/${run}/ask`, { code }, "POST", signal));
    answers.prepend(showAnswer(code, answer));
    form.reset();
  } catch (error) {
    answers.prepend(make("p", { className: "alert", role: "alert" }, error.message));
  }
}

function showAnswer(code, answer) {
  const parts = [make("pre", { className: "question" }, code)];
  if (answer.stdout) parts.push(make("pre", {}, answer.stdout));
  if (answer.stderr) parts.push(make("pre", { className: "is-bad" }, answer.stderr));
  if (answer.error) parts.push(make("pre", { className: "is-bad" }, answer.error.traceback || answer.error.message));
  else if (answer.value_type) parts.push(make("pre", {}, formatValue(answer.value)));
  else parts.push(make("p", { className: "faint small" }, "No value."));
  for (const media of answer.media) {
    if (!/^image\/(png|jpeg|gif|webp)$/.test(media.mime_type)) continue;
    parts.push(make("p", { className: "faint small" }, `An image (${media.mime_type}) was shown.`));
  }
  return make("div", { className: "answer text" }, ...parts);
}

function formatValue(value) {
  return typeof value === "string" ? value : JSON.stringify(value, null, 1);
}

async function showVariables(button, session, run, list) {
  const state = find("[data-variable-state]", list.parentElement);
  try {
    const [found, { sources }] = await doWork(button, state, "The state after this step is rebuilt.", (signal) =>
      Promise.all([
        sendJson(`/ui/api/runs/${run}/variables`, {}, "POST", signal),
        loadJson(`/s/${session}/${run}/sources`, signal),
      ]));
    const describe = (variable) => describeSource(variable, sources, session, run);
    list.replaceChildren(buildTable(found, describe));
    button.hidden = true;
    list.firstElementChild.focus(); // the button that had it is gone
  } catch (error) {
    list.replaceChildren(make("p", { className: "alert", role: "alert" }, error.message));
  }
}

function buildTable(found, describe) {
  const heads = ["Name", "Type", "Size", "Value", "Set in"];
  const head = make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text))));
  const rows = [...found.variables].sort((a, b) => rank(a) - rank(b)).map((each) =>
    make(
      "tr",
      { className: `variable-${each.change}` },
      make("td", {}, make("code", {}, each.name), " ", ...(CHANGES[each.change] ? [make("span", { className: "pill" }, CHANGES[each.change])] : [])),
      make("td", { className: "faint" }, each.type),
      make("td", { className: "num" }, describeSize(each)),
      make("td", { className: "variable-value" }, make("code", { className: each.value.kind === "error" ? "is-bad" : "" }, each.value.text)),
      make("td", { className: "variable-source" }, ...describe(each)),
    ),
  );
  for (const name of found.removed) {
    const label = make("td", {}, make("code", {}, name), " ", make("span", { className: "pill pill-error" }, "deleted"));
    rows.push(make("tr", {}, label, make("td"), make("td"), make("td"), make("td")));
  }
  const frame = make("div", { className: "table-frame", tabIndex: 0, role: "region" }, make("table", { className: "variables" }, head, make("tbody", {}, ...rows)));
  frame.setAttribute("aria-label", "Variables after the step");
  return rows.length ? frame : make("p", { className: "empty small", tabIndex: -1 }, "No variables.");
}

/** Return what a table says about the step that set a variable, and the one that changed it. */
function describeSource(variable, sources, session, run) {
  const known = Object.hasOwn(sources, variable.name) ? sources[variable.name] : null;
  const isHere = variable.change === "added";
  if (!known && isHere) return ["this step"];
  if (!known) {
    const title = "The recorded code does not say: it was set by exec, import *, a function, or too long ago.";
    return [make("span", { className: "faint", title }, "unknown")];
  }
  const parts = [linkPlace(known.set_in, session, run)];
  if (variable.change === "changed" && known.set_in.run !== run) parts.push(", changed in this step");
  else if (known.changed_in && known.changed_in.run !== known.set_in.run) parts.push(", maybe changed in ", linkPlace(known.changed_in, session, run));
  return parts;
}

function linkPlace(place, session, run) {
  const href = place.run === run ? `#L${place.line}` : `/s/${session}/${place.run}#L${place.line}`;
  return make("a", { href }, place.run === run ? "this step" : `step ${place.step}`);
}

/** Return where a variable stands: what the step has changed, then data, then code. */
function rank(variable) {
  if (variable.change !== "unchanged") return 0;
  return ["function", "module", "type"].includes(variable.type) ? 2 : 1;
}

function describeSize(variable) {
  if (variable.shape) return variable.shape.map((each) => each.toLocaleString("en")).join(" × ");
  return variable.length === null ? "" : variable.length.toLocaleString("en");
}
