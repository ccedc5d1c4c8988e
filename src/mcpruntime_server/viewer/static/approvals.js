// The queue of what waits for an answer: new cards appear by themselves, and keys answer them.

import { announce, find, findAll, isWriting } from "./dom.js";
import { loadDocument, sendJson } from "./http.js";
import { followChanges } from "./live.js";
import { showTimes } from "./viewer.js";

const KEYS = { a: "allow", d: "deny", r: "allow_run", s: "allow_session" };
const DONE = { allow: "Allowed.", allow_run: "Allowed for the run.", allow_session: "Allowed for the session.", deny: "Refused.", decline: "Declined." };

const MAX_PAUSE_MS = 150; // between two updates: a new card is to be there within a second

const queue = find("[data-queue]");

async function refresh() {
  const page = await loadDocument("/approvals");
  const loaded = document.adoptNode(find("[data-queue]", page));
  const known = new Map(findAll("[data-card]", queue).map((card) => [card.dataset.card, card]));
  const chosen = document.activeElement?.closest?.("[data-card]");
  const place = chosen ? findAll("[data-card]", queue).indexOf(chosen) : -1;
  // A card that stays is not replaced: somebody may be writing in it.
  for (const card of findAll("[data-card]", loaded)) {
    const old = known.get(card.dataset.card);
    const isSame = old && find("footer button", old) && find("footer button", card);
    if (isSame) card.replaceWith(old);
  }
  queue.replaceChildren(...loaded.childNodes);
  showTimes(queue);
  if (chosen) {
    const cards = findAll("[data-card]", queue);
    (chosen.isConnected ? chosen : cards[Math.min(place, cards.length - 1)])?.focus();
  }
}

async function answer(card, value) {
  const controls = findAll("button", card);
  for (const each of controls) each.disabled = true;
  try {
    await sendJson(`/ui/api/runs/${card.dataset.run}/answers`, { answers: { [card.dataset.question]: value } });
    announce(DONE[value] ?? "Answered.");
  } catch (error) {
    for (const each of controls) each.disabled = false;
    await refresh();
    const isTaken = error.status === 409 && !card.isConnected;
    announce(isTaken ? `Somebody else was faster. ${error.message}` : error.message, "error");
    return;
  }
  await refresh();
}

queue.addEventListener("click", (event) => {
  const button = event.target.closest("[data-answer]");
  if (button) answer(button.closest("[data-card]"), button.dataset.answer);
});

queue.addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target;
  const text = find("textarea", form).value;
  try {
    answer(form.closest("[data-card]"), form.dataset.reply === "json" ? JSON.parse(text) : text);
  } catch {
    announce("The answer is not JSON.", "error");
  }
});

document.addEventListener("keydown", (event) => {
  if (isWriting(event)) return;
  const cards = findAll("[data-card]", queue);
  const chosen = document.activeElement.closest("[data-card]");
  const place = cards.indexOf(chosen);
  if (event.key === "j" || event.key === "k") {
    const next = chosen ? place + (event.key === "j" ? 1 : -1) : 0;
    cards[Math.min(Math.max(next, 0), cards.length - 1)]?.focus();
  } else if (chosen && event.key in KEYS) {
    const button = find(`[data-answer=${KEYS[event.key]}]`, chosen);
    if (button && !button.disabled) answer(chosen, button.dataset.answer);
  }
});

followChanges("/approvals/changes", refresh, (text) => announce(text, "error"), MAX_PAUSE_MS);
