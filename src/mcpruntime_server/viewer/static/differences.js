// Two runs side by side: what differs in code, output, calls, value, error and files.

import { make } from "./dom.js";

/** Return an element that shows how run `b` differs from run `a`. */
export function showDifference(step, found) {
  const parts = [make("h3", {}, `Step ${step}`)];
  for (const [title, text] of [["Code", found.code], ["Output", found.stdout], ["Error output", found.stderr]]) {
    if (text) parts.push(make("h4", {}, title), sideBySide(text));
  }
  for (const [title, change] of [["Status", found.status], ["Value", found.value], ["Error", found.error]]) {
    if (change) parts.push(make("h4", {}, title), pair(formatSide(change.a, title), formatSide(change.b, title)));
  }
  for (const call of found.calls) {
    parts.push(make("h4", {}, make("code", {}, `${call.target.replace(/^tools\./, "")}(${call.args})`)));
    parts.push(pair(formatCall(call.a), formatCall(call.b)));
  }
  for (const file of found.files) {
    parts.push(make("h4", {}, make("code", {}, file.path)));
    parts.push(file.text ? sideBySide(file.text) : pair(formatFile(file.a), formatFile(file.b)));
  }
  for (const text of found.damage) parts.push(make("p", { className: "alert" }, text));
  return make("section", { className: "difference" }, ...parts);
}

const formatFile = (file) => (file ? `${file.size.toLocaleString("en")} bytes, ${file.digest.slice(0, 12)}` : "no such file");

function formatCall(outcome) {
  if (!outcome) return "not called";
  return outcome.error ? `error: ${outcome.error.message}` : JSON.stringify(outcome.value, null, 1);
}

function formatSide(side, title) {
  if (side === null) return `no ${title.toLowerCase()}`;
  if (typeof side === "string") return side;
  if (side.kind === "json") return indentJson(side.text);
  return side.traceback || side.text || side.message || JSON.stringify(side, null, 1);
}

function indentJson(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 1);
  } catch {
    return text; // it was cut
  }
}

function pair(left, right) {
  return buildTable([[left, right, "removed", "added"]]);
}

/** Return a unified difference as two columns. */
function sideBySide(text) {
  const rows = [];
  let removed = [];
  let added = [];
  const flush = () => {
    for (let place = 0; place < Math.max(removed.length, added.length); place += 1) {
      const [left, right] = [removed[place], added[place]];
      rows.push([left ?? "", right ?? "", left === undefined ? "blank" : "removed", right === undefined ? "blank" : "added"]);
    }
    removed = [];
    added = [];
  };
  for (const line of text.split("\n")) {
    if (line.startsWith("-")) removed.push(line.slice(1));
    else if (line.startsWith("+")) added.push(line.slice(1));
    else {
      flush();
      const shown = line.startsWith("@@") ? "⋯" : line.slice(1);
      rows.push([shown, shown, "same", "same"]);
    }
  }
  flush();
  return buildTable(rows);
}

function buildTable(rows) {
  const head = make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Recorded"), make("th", { scope: "col" }, "Attempt")));
  const body = rows.map(([left, right, leftKind, rightKind]) =>
    make("tr", {}, make("td", { className: leftKind }, make("pre", {}, left)), make("td", { className: rightKind }, make("pre", {}, right))),
  );
  return make("table", { className: "side-by-side" }, head, make("tbody", {}, ...body));
}
