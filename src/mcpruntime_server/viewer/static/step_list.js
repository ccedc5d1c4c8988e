// The steps of a session as data: their order, and the lanes of their branches.

const MAX_LANES = 8;

/** Steps with the lane of each, and the lines that pass through each row. */
export class StepList {
  constructor(steps) {
    this.steps = steps;
    this.places = new Map(steps.map((step, place) => [step.run, place]));
    this.lanes = new Array(steps.length).fill(0);
    this.lines = steps.map(() => []);
    this.laneCount = 1;
    this.#arrange();
  }

  get length() {
    return this.steps.length;
  }

  placeOf(run) {
    return this.places.get(run) ?? -1;
  }

  /** Put each chain of steps into the first lane that is free while it lasts. */
  #arrange() {
    const next = new Map();
    for (const [place, step] of this.steps.entries()) {
      const parent = this.places.get(step.parent);
      if (parent === undefined) continue;
      const known = next.get(parent);
      const isBetter = known === undefined ||
        (step.is_current && !this.steps[known].is_current) ||
        (this.steps[known].is_undone && !step.is_undone && !this.steps[known].is_current);
      if (isBetter) next.set(parent, place);
    }
    const busyUntil = [];
    for (const [place, step] of this.steps.entries()) {
      const parent = this.places.get(step.parent);
      if (parent !== undefined && next.get(parent) === place) continue;
      const chain = [place];
      for (let at = next.get(place); at !== undefined; at = next.get(at)) chain.push(at);
      const from = parent ?? place;
      let lane = busyUntil.findIndex((until) => until < from);
      if (lane < 0) lane = busyUntil.length;
      busyUntil[lane] = chain.at(-1);
      const shown = Math.min(lane, MAX_LANES - 1);
      this.laneCount = Math.max(this.laneCount, shown + 1);
      for (const each of chain) this.lanes[each] = shown;
      const isCurrent = step.is_current;
      for (let row = from; row <= chain.at(-1); row += 1) {
        if (row === from && parent !== undefined) continue;
        const isFirst = row === (parent === undefined ? place : parent + 1);
        this.lines[row].push({
          lane: shown,
          isCurrent,
          begins: isFirst,
          ends: row === chain.at(-1),
          from: parent !== undefined && isFirst ? this.lanes[parent] : null,
        });
      }
    }
  }
}
