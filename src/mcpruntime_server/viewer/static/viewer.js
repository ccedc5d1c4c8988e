// What every page does: times in the zone of the reader, and keys.

import { find, findAll, isWriting } from "./dom.js";
import { formatClock, formatRelative } from "./formats.js";

const REFRESH_MS = 30_000;
const COUNT_MS = 4_000;

/** Show the times below an element as people read them. */
export function showTimes(root = document) {
  for (const element of findAll("time[data-relative], time[data-clock]", root)) {
    const date = new Date(element.dateTime);
    element.title = date.toLocaleString("en");
    const format = "relative" in element.dataset ? formatRelative : formatClock;
    element.textContent = format(date);
  }
}

showTimes();
setInterval(showTimes, REFRESH_MS);

/** Show how much waits for an answer. */
async function showApprovalCount() {
  const badge = find("[data-approval-count]");
  if (!badge || document.hidden) return;
  const response = await fetch("/approvals/count").catch(() => null);
  if (!response?.ok) return;
  const { count } = await response.json();
  badge.hidden = !count;
  badge.textContent = count;
}

showApprovalCount();
setInterval(showApprovalCount, COUNT_MS);
document.addEventListener("visibilitychange", showApprovalCount);

document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !isWriting(event)) {
    const search = find("[data-search]");
    if (search) {
      event.preventDefault();
      search.focus();
      search.select();
    }
  }
});
