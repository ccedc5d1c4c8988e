// The page of a session: scrubbing over its steps, and following it while it works.

import { startChanges } from "./changes.js";
import { startDeletion } from "./deletion.js";
import { announce, find, findAll, isWriting, make, waitForPaint } from "./dom.js";
import { formatDuration, formatMoney } from "./formats.js";
import { loadDocument, loadJson, sendJson } from "./http.js";
import { followChanges } from "./live.js";
import { OutputView } from "./output_view.js";
import { startProbes } from "./probes.js";
import { startQuestions } from "./questions.js";
import { Rail } from "./rail.js";
import { startSaving } from "./saving.js";
import { ScrubBar } from "./scrub_bar.js";
import { readSteps, StepList, StepRows } from "./step_list.js";
import { startTables } from "./tables.js";
import { showTimes } from "./viewer.js";

const SETTLE_MS = 45; // before the panel of a step is loaded while somebody scrubs
const MAX_KEPT_PANELS = 80;
// where keys lead to from a place; the latter ones while the bar has the focus
const MOVES = { ArrowLeft: (at) => at - 1, k: (at) => at - 1, ArrowRight: (at) => at + 1, j: (at) => at + 1 };
const JUMPS = {
  Home: () => 0,
  End: (at, last) => last,
  PageUp: (at, last) => Math.max(at - tenthOf(last), 0),
  PageDown: (at, last) => Math.min(at + tenthOf(last), last),
};
// what keys lead to: fields get the focus, buttons are pressed
const TOOLS = { p: "#probe-expression", t: "[data-try]", a: "#ask-code", v: "[data-variables]:not([hidden])" };

const page = find("[data-session]");
const session = page.dataset.session;
const frame = find("[data-panel]");
const addressOf = (run) => `/s/${session}/${run}`;
const firstPaint = waitForPaint();

let list = new StepList([]);
let selected = -1;
let output = null;
let loading = null;
let settling = 0;
let direction = 1; // in which somebody goes through the steps
let isFollowing = false; // the newest step is selected, and the next one will be
let waiting = []; // what people have asked for before the steps were there
let shownSequence = -1; // of the last change of the session that the list has
const panels = new Map(); // of finished steps, by run
const rows = new StepRows(`/s/${session}/steps/rows`);

const select = (place) => selectStep(place);
const rail = new Rail(find("[data-rail]"), rows, addressOf, select);
const scrub = new ScrubBar(find("[data-scrub]"), find("[data-scrub-hint]"), rows, select);
const stepsBefore = Number(scrub.canvas.getAttribute("aria-valuemax")); // that the page knew when it was made

// selecting a step ------------------------------------------------------------------------------

/** Do something with the steps, once they are there. */
function withSteps(action) {
  if (list.length) action();
  else waiting.push(action);
}

function selectStep(place, { isSettled = false } = {}) {
  if (place < 0 || place >= list.length || place === selected) return;
  direction = place < selected ? -1 : 1;
  selected = place;
  isFollowing = place === list.length - 1;
  rail.select(place);
  scrub.select(place);
  markButtons();
  clearTimeout(settling);
  loading?.abort();
  const row = rows.get(place);
  page.dataset.run = row?.run ?? "";
  const known = row && panels.get(row.run);
  if (known) showPanel(known, row.run);
  settling = setTimeout(() => settle(place), isSettled || known ? 0 : SETTLE_MS);
}

/** Load what belongs to the step at which somebody has stopped. */
async function settle(place) {
  try {
    const { run } = await rows.load(place);
    if (selected !== place) return;
    page.dataset.run = run;
    history.replaceState(null, "", addressOf(run)); // browsers allow few changes a second
    const known = panels.get(run); // it may have come meanwhile
    if (!known) await loadPanel(run);
    else if (find(".panel", frame) !== known) showPanel(known, run);
  } catch (error) {
    if (selected === place) showProblem(error.message);
    return;
  }
  if (selected === place) await prefetch(place + direction);
}

/** Load the step that probably comes next, so that it is there at once. */
async function prefetch(place) {
  if (place < 0 || place >= list.length || list.steps[place].is_live) return;
  const row = await rows.load(place).catch(() => null);
  if (!row || panels.has(row.run)) return;
  const loaded = await loadDocument(`${addressOf(row.run)}/panel`).catch(() => null);
  if (loaded && !panels.has(row.run)) keepPanel(document.adoptNode(find(".panel", loaded)), row.run);
}

async function loadPanel(run) {
  loading?.abort();
  const request = (loading = new AbortController());
  try {
    const loaded = await loadDocument(`${addressOf(run)}/panel`, request.signal);
    if (page.dataset.run === run) showPanel(find(".panel", loaded), run);
  } catch (error) {
    if (error.name !== "AbortError" && page.dataset.run === run) showProblem(error.message);
  }
}

function showPanel(panel, run) {
  const before = find(".panel", frame);
  const isSame = before?.dataset.run === run;
  const wasAtEnd = isSame && output?.isAtEnd;
  const open = isSame ? findAll("details[open]", before).map((each) => each.id).filter(Boolean) : [];
  const scrolled = isSame ? find(".output", before)?.scrollTop : 0;
  const top = isSame ? frame.scrollTop : 0;
  frame.replaceChildren(document.adoptNode(panel));
  startTools(panel, run);
  showTimes(panel);
  startOutput();
  for (const id of open) find(`#${CSS.escape(id)}`, panel)?.setAttribute("open", "");
  if (wasAtEnd || (!isSame && panel.dataset.isLive)) output?.scrollToEnd();
  else if (scrolled) find(".output", panel).scrollTop = scrolled;
  frame.scrollTop = top;
  keepPanel(panel, run);
  page.dispatchEvent(new CustomEvent("panel", { detail: { panel, run } }));
}

function keepPanel(panel, run) {
  if (panel.dataset.isLive) {
    panels.delete(run);
    return;
  }
  panels.set(run, panel);
  if (panels.size > MAX_KEPT_PANELS) panels.delete(panels.keys().next().value);
}

function showProblem(text) {
  frame.replaceChildren(make("p", { className: "alert", role: "alert" }, text));
}

function startTools(panel, run) {
  if (panel.dataset.hasTools) return;
  panel.dataset.hasTools = "1";
  startProbes(panel, run);
  startQuestions(panel, session, run);
  startChanges(panel, session, run);
  startSaving(panel, session, run);
  startTables(panel);
}

function startOutput() {
  const element = find(".output", frame);
  output = element ? new OutputView(element) : null;
}

function markButtons() {
  find("[data-go=previous]").disabled = selected <= 0;
  find("[data-go=next]").disabled = selected >= list.length - 1;
}

// the steps ---------------------------------------------------------------------------------------

async function loadSteps() {
  const run = page.dataset.run || rows.get(selected)?.run || "";
  const columns = await loadJson(`/s/${session}/steps?run=${run}`);
  await firstPaint; // of the step; drawing thousands of others would delay it
  shownSequence = columns.sequence;
  const isFirst = list.length === 0;
  const isNew = columns.steps.length > (list.length || stepsBefore);
  const steps = readSteps(columns);
  list = new StepList(steps);
  rows.add(columns.window);
  rail.show(list);
  scrub.show(steps);
  if (isFirst && page.dataset.run) {
    selected = rows.placeOf(page.dataset.run);
    isFollowing = selected === stepsBefore - 1;
  }
  if (isNew && isFollowing) {
    selectStep(list.length - 1, { isSettled: true });
  } else {
    if (page.dataset.run) selected = rows.placeOf(page.dataset.run);
    if (selected < 0 && list.length) selectStep(list.length - 1, { isSettled: true });
    isFollowing = selected === list.length - 1;
    rail.select(selected);
    scrub.select(selected);
  }
  markButtons();
  const asked = waiting;
  waiting = [];
  for (const action of asked) action();
  showTotals(steps);
  find("[data-live]").hidden = !steps.some((step) => step.is_live);
}

const hasFailed = (step) => ["error", "timeout", "crashed"].includes(step.status);

function showTotals(steps) {
  const time = steps.reduce((sum, step) => sum + (step.duration_ms ?? 0), 0);
  const usd = steps.reduce((sum, step) => sum + step.usd, 0);
  const parts = [steps.length === 1 ? "1 step" : `${steps.length.toLocaleString("en")} steps`, formatDuration(time)];
  if (usd) parts.push(formatMoney(usd));
  find("[data-totals]").textContent = parts.join(" · ");
  const failed = steps.filter(hasFailed).length;
  const button = find("[data-go=failure]");
  button.textContent = `${failed.toLocaleString("en")} failed`;
  button.hidden = !failed;
}

/** Select the next step that has failed, and the first one after the last. */
function goToFailure() {
  const places = [...list.steps.keys()].filter((place) => hasFailed(list.steps[place]));
  if (places.length) selectStep(places.find((place) => place > selected) ?? places[0], { isSettled: true });
}

/** Load again what has changed in the session. */
async function catchUp({ sequence }) {
  await firstSteps;
  if (sequence > shownSequence) await loadSteps();
  const panel = find(".panel", frame);
  const { run } = page.dataset;
  const isStale = panel?.dataset.run === run && (panel.dataset.isLive || panel.dataset.status === "waiting");
  if (run && (isStale || !panel)) await loadPanel(run);
}

const tenthOf = (last) => Math.max(Math.round(last / 10), 1);

// what people do ------------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  if (isWriting(event) || find("dialog[open]")) return;
  const isScrolling = event.target.closest("[role=region]") && event.key.startsWith("Arrow");
  if (isScrolling) return;
  const move = MOVES[event.key] ?? (event.target === scrub.canvas && JUMPS[event.key]);
  if (move) {
    event.preventDefault();
    withSteps(() => selectStep(move(selected, list.length - 1)));
  } else if (event.key === "f") {
    withSteps(goToFailure);
  } else if (event.key in TOOLS) {
    const tool = find(TOOLS[event.key], frame);
    if (tool) event.preventDefault();
    tool?.focus();
    if (tool?.tagName === "BUTTON") tool.click();
  }
});

page.addEventListener("click", async (event) => {
  const go = event.target.closest("[data-go]");
  if (go?.dataset.go === "failure") goToFailure();
  else if (go) withSteps(() => selectStep(selected + (go.dataset.go === "next" ? 1 : -1), { isSettled: true }));
  const cancel = event.target.closest("[data-cancel]");
  if (cancel) {
    cancel.disabled = true;
    try {
      await sendJson(`/ui/api/runs/${cancel.dataset.cancel}/cancel`);
      announce("The run is cancelled.");
    } catch (error) {
      cancel.disabled = false;
      announce(error.message, "error");
    }
  }
});

// files are compared when somebody opens one
frame.addEventListener("toggle", async (event) => {
  const file = event.target;
  if (!file.open || !file.dataset.diff || file.dataset.isLoaded) return;
  file.dataset.isLoaded = "1";
  const loaded = await loadDocument(file.dataset.diff).catch((error) => error);
  const part = loaded instanceof Error ? make("p", { className: "alert" }, loaded.message) : document.adoptNode(find(".diff-part", loaded));
  file.append(part);
}, { capture: true });

// links to lines ------------------------------------------------------------------------------------

async function showTarget() {
  findAll(".is-target").forEach((each) => each.classList.remove("is-target"));
  const hash = location.hash.slice(1);
  let target = null;
  if (/^O\d{1,10}$/.test(hash)) target = await output?.showLine(Number(hash.slice(1)));
  else if (/^(L\d{1,9}|call-\d{1,9})$/.test(hash)) target = document.getElementById(hash);
  if (!target) return;
  target.classList.add("is-target");
  if (target.tagName === "DETAILS") target.open = true;
  target.scrollIntoView({ block: "nearest" });
}

addEventListener("hashchange", showTarget);

const firstSteps = loadSteps().catch((error) => console.error(error)); // the next change loads them
startDeletion(find("[data-delete]"), session);
startOutput();
const shown = find(".panel", frame);
if (shown) {
  startTools(shown, shown.dataset.run);
  keepPanel(shown, shown.dataset.run);
  if (shown.dataset.isLive) output?.scrollToEnd();
}
await showTarget();
followChanges(`/s/${session}/changes`, catchUp, showProblem);
