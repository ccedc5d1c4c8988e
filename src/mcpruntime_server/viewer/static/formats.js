// Figures as the pages write them; `page_text.py` has the same for what the server renders.

export function formatDuration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1000) return `${ms.toFixed(0)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
  const seconds = Math.round(ms / 1000);
  const minutes = Math.floor(seconds / 60);
  const pad = (number) => String(number).padStart(2, "0");
  if (minutes >= 60) return `${Math.floor(minutes / 60)} h ${pad(minutes % 60)} min`;
  return `${minutes} min ${pad(seconds % 60)} s`;
}

export function formatMoney(usd) {
  return `$${usd.toFixed(usd >= 0.995 ? 2 : 4)}`;
}

const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" });
const UNITS = [["day", 86_400], ["hour", 3_600], ["minute", 60]];

export function formatRelative(date) {
  const seconds = (date - Date.now()) / 1000;
  if (seconds < -7 * 86_400) {
    return date.toLocaleDateString("en", { year: "numeric", month: "short", day: "numeric" });
  }
  for (const [unit, size] of UNITS) {
    if (seconds >= size) return relative.format(Math.round(seconds / size), unit);
    if (seconds <= -size) return relative.format(Math.round(seconds / size), unit);
  }
  return seconds > 1 ? "in a minute" : "just now";
}

export function formatClock(date) {
  return date.toLocaleTimeString("en", { hour12: false });
}
