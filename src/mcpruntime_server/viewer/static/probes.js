// After-the-fact prints: values of an expression for each execution of a line of a finished step.

import { find, findAll, make } from "./dom.js";
import { sendJson } from "./http.js";
import { describeRecorded, doWork } from "./work_dialog.js";

const MAX_HITS = 50;

/** Let people print values on the lines of a panel. */
export function startProbes(panel, run) {
  const form = find("[data-probe-form]", panel);
  if (!form || form.dataset.isStarted) return;
  form.dataset.isStarted = "1";
  const line = form.elements.namedItem("line");
  const expression = form.elements.namedItem("expression");
  for (const mark of findAll("[data-probe-line]", panel)) {
    mark.addEventListener("click", () => {
      line.value = mark.dataset.probeLine;
      expression.focus();
      expression.select();
    });
  }
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    await showProbe(panel, run, form, { line: Number(line.value), expression: expression.value });
  });
}

async function showProbe(panel, run, form, request) {
  const button = find("button", form);
  const state = find("[data-probe-state]", form);
  const text = `The step is replayed.${describeRecorded(panel)}`;
  state.classList.remove("is-bad");
  try {
    const found = await doWork(button, state, text, (signal) =>
      sendJson(`/ui/api/runs/${run}/probe`, { ...request, max_hits: MAX_HITS }, "POST", signal));
    placeResult(panel, found, request);
    state.textContent = describeReplay(found);
    state.classList.toggle("is-bad", !found.faithful);
  } catch (error) {
    state.textContent = error.message;
    state.classList.add("is-bad");
  }
}

function describeReplay(found) {
  const notes = found.notes.map((note) => ` ${note}`).join("");
  if (found.faithful) return `Replayed exactly as recorded.${notes || " Nothing outside was touched."}`;
  const what = found.differences.join(", ");
  return `The replay differs from the recording in ${what}. ${found.divergence}${notes}`;
}

/** Show the values below the line that they belong to. */
function placeResult(panel, found, request) {
  const code = find("[data-code]", panel);
  const place = find(`[data-line="${found.line || request.line}"]`, code);
  const close = make("button", { type: "button", className: "quiet", title: "Remove" }, "×");
  close.setAttribute("aria-label", `Remove the values of ${request.expression}`);
  const item = make(
    "li",
    { className: "probe-result" },
    make("div", { className: "probe-head" }, make("code", {}, request.expression), describeCount(found), close),
    listHits(found),
  );
  close.addEventListener("click", () => item.remove());
  for (const other of findAll(".probe-result", code)) {
    if (other.dataset.key === `${found.line} ${request.expression}`) other.remove();
  }
  item.dataset.key = `${found.line} ${request.expression}`;
  if (place) place.after(item);
  else code.append(item);
  code.scrollLeft = 0; // going through its marks with the keyboard may have scrolled the line away
  item.scrollIntoView({ block: "nearest" });
}

function describeCount(found) {
  let text = `${found.hits.length} of ${(found.hit_count ?? found.hits.length).toLocaleString("en")} executions`;
  if (found.hit_count === found.hits.length) text = found.hit_count === 1 ? "1 execution" : `${found.hit_count} executions`;
  if (found.hit_count === null) text += "; then the interpreter died";
  return make("span", { className: "faint" }, text);
}

function listHits(found) {
  const rows = found.hits.map(({ number, value }) =>
    make(
      "li",
      {},
      make("span", { className: "no" }, String(number)),
      make("code", { className: value.kind === "error" ? "is-bad" : "", title: value.type }, value.text),
    ),
  );
  return make("ol", { className: "hits" }, ...rows);
}
