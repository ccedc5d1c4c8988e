// The steps of a session as data: figures of all, rows in windows, and the lanes of branches.

import { loadJson } from "./http.js";

const MAX_LANES = 8;

/** Return the steps that the server describes in columns. */
export function readSteps(columns) {
  let number = 0;
  const undone = new Set(columns.undone);
  const steps = columns.steps.map((difference, place) => {
    number += difference;
    const status = columns.status_names[columns.statuses[place]];
    const distance = columns.parents[place];
    return {
      step: number,
      status,
      parent: distance ? place - distance : -1,
      is_undone: undone.has(place),
      is_current: false, // it leads to the state that the session has now
      duration_ms: columns.durations[place],
      is_live: columns.durations[place] === null, // it runs, or waits to run or for an answer
      usd: columns.usd[place] ?? 0,
    };
  });
  for (let at = columns.tip; at >= 0; at = steps[at].parent) steps[at].is_current = true;
  return steps;
}

/** The runs and the code of steps, by place; loaded for the windows that somebody looks at. */
export class StepRows {
  #address;
  #rows = new Map();
  #loading = new Map();

  constructor(address) {
    this.#address = address;
  }

  get(place) {
    return this.#rows.get(place);
  }

  placeOf(run) {
    for (const [place, row] of this.#rows) if (row.run === run) return place;
    return -1;
  }

  /** Take the rows of a window, which may be known. */
  add({ first, rows }) {
    rows.forEach((row, place) => this.#rows.set(first + place, row));
  }

  /** Load the window that has a place, and return its row. */
  async load(place) {
    if (!this.#rows.has(place)) {
      let request = this.#loading.get(place);
      if (!request) {
        request = loadJson(`${this.#address}?place=${place}`);
        this.#loading.set(place, request);
      }
      try {
        this.add(await request);
      } finally {
        this.#loading.delete(place);
      }
    }
    return this.#rows.get(place);
  }
}

/** Steps with the lane of each, and the lines that pass through each row. */
export class StepList {
  constructor(steps) {
    this.steps = steps;
    this.lanes = new Array(steps.length).fill(0);
    this.lines = steps.map(() => []);
    this.laneCount = 1;
    this.#arrange();
  }

  get length() {
    return this.steps.length;
  }

  /** Put each chain of steps into the first lane that is free while it lasts. */
  #arrange() {
    const next = new Map();
    for (const [place, step] of this.steps.entries()) {
      if (step.parent < 0) continue;
      const known = next.get(step.parent);
      const isBetter = known === undefined ||
        (step.is_current && !this.steps[known].is_current) ||
        (this.steps[known].is_undone && !step.is_undone && !this.steps[known].is_current);
      if (isBetter) next.set(step.parent, place);
    }
    const busyUntil = [];
    for (const [place, step] of this.steps.entries()) {
      const { parent } = step;
      if (parent >= 0 && next.get(parent) === place) continue;
      const chain = [place];
      for (let at = next.get(place); at !== undefined; at = next.get(at)) chain.push(at);
      const from = parent < 0 ? place : parent;
      let lane = busyUntil.findIndex((until) => until < from);
      if (lane < 0) lane = busyUntil.length;
      busyUntil[lane] = chain.at(-1);
      const shown = Math.min(lane, MAX_LANES - 1);
      this.laneCount = Math.max(this.laneCount, shown + 1);
      for (const each of chain) this.lanes[each] = shown;
      const isCurrent = step.is_current;
      for (let row = from; row <= chain.at(-1); row += 1) {
        if (row === from && parent >= 0) continue;
        const isFirst = row === (parent < 0 ? place : parent + 1);
        this.lines[row].push({
          lane: shown,
          isCurrent,
          begins: isFirst,
          ends: row === chain.at(-1),
          from: parent >= 0 && isFirst ? this.lanes[parent] : null,
        });
      }
    }
  }
}
