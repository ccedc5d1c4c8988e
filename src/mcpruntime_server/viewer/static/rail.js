// The list of steps with the branches drawn beside it; only the rows in view exist.

import { draw, find, make } from "./dom.js";
import { formatDuration } from "./formats.js";

const ROW_PX = 30;
const EXTRA_ROWS = 12;
const SETTLE_MS = 60; // before rows are loaded while somebody scrolls
const LANE_PX = 13;
const LANE_START_PX = 10;

export class Rail {
  #list = null;
  #selected = -1;
  #rows = new Map();
  #data;
  #addressOf;
  #waiting = 0;

  /** `data` has the run and the code of the rows, `addressOf` returns the address of a run. */
  constructor(element, data, addressOf, onSelect) {
    this.element = element;
    this.#data = data;
    this.#addressOf = addressOf;
    this.body = make("div", { className: "rail-body" });
    element.replaceChildren(this.body);
    element.addEventListener("scroll", () => this.#render(), { passive: true });
    new ResizeObserver(() => this.#render()).observe(element);
    this.body.addEventListener("click", (event) => {
      const row = event.target.closest("a");
      if (!row || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      onSelect(Number(row.dataset.place));
    });
  }

  show(list) {
    this.#list = list;
    this.body.style.height = `${list.length * ROW_PX}px`;
    this.#rows.forEach((row) => row.remove());
    this.#rows.clear();
    this.#render();
  }

  select(place) {
    this.#rows.get(this.#selected)?.removeAttribute("aria-current");
    this.#selected = place;
    const top = place * ROW_PX;
    const height = this.element.clientHeight;
    if (top < this.element.scrollTop + ROW_PX || top > this.element.scrollTop + height - 2 * ROW_PX) {
      this.element.scrollTop = top - height / 2 + ROW_PX / 2;
    }
    this.#render();
    this.#rows.get(place)?.setAttribute("aria-current", "step");
  }

  #render() {
    if (!this.#list) return;
    const { scrollTop, clientHeight } = this.element;
    const first = Math.max(Math.floor(scrollTop / ROW_PX) - EXTRA_ROWS, 0);
    const last = Math.min(Math.ceil((scrollTop + clientHeight) / ROW_PX) + EXTRA_ROWS, this.#list.length);
    for (const [place, row] of this.#rows) {
      if (place < first || place >= last) {
        row.remove();
        this.#rows.delete(place);
      }
    }
    for (let place = first; place < last; place += 1) {
      if (!this.#rows.has(place)) {
        const row = this.#buildRow(place);
        this.#rows.set(place, row);
        this.body.append(row);
      }
    }
    clearTimeout(this.#waiting);
    if (this.#isMissing(first, last)) this.#waiting = setTimeout(() => this.#fill(first, last), SETTLE_MS);
  }

  #isMissing(first, last) {
    for (let place = first; place < last; place += 1) if (!this.#data.get(place)) return true;
    return false;
  }

  /** Load the rows in view, and write what they are. */
  async #fill(first, last) {
    for (let place = first; place < last; place += 1) {
      // A window that cannot be loaded stays as it is until somebody scrolls here again.
      if (!this.#data.get(place) && !(await this.#data.load(place).catch(() => null))) return;
      const row = this.#rows.get(place);
      if (row && this.#data.get(place)) this.#describe(row, place);
    }
  }

  #buildRow(place) {
    const step = this.#list.steps[place];
    const isAside = !step.is_current && !step.is_live;
    const row = make(
      "a",
      { className: `rail-row${isAside ? " is-aside" : ""}`, tabIndex: -1 },
      this.#drawLanes(place, step),
      make("span", { className: "num rail-step" }, String(step.step)),
      make("span", { className: "visually-hidden" }, step.status),
      make("code"),
      make("span", { className: "num rail-time" }, step.is_live ? step.status : formatDuration(step.duration_ms)),
    );
    row.dataset.place = place;
    this.#describe(row, place);
    if (place === this.#selected) row.setAttribute("aria-current", "step");
    row.style.transform = `translateY(${place * ROW_PX}px)`;
    return row;
  }

  #describe(row, place) {
    const known = this.#data.get(place);
    const code = find("code", row);
    code.textContent = known?.code || "…";
    if (!known) return;
    row.href = this.#addressOf(known.run);
    row.title = known.code;
  }

  #drawLanes(place, step) {
    const width = LANE_START_PX * 2 + (this.#list.laneCount - 1) * LANE_PX;
    const svg = draw("svg", { width, height: ROW_PX, viewBox: `0 0 ${width} ${ROW_PX}` });
    const middle = ROW_PX / 2;
    const at = (lane) => LANE_START_PX + lane * LANE_PX;
    const own = this.#list.lanes[place];
    const x = at(own);
    for (const line of this.#list.lines[place]) {
      const here = at(line.lane);
      const isLast = line.ends && line.lane === own;
      const kind = line.isCurrent ? "lane is-current" : "lane";
      if (line.from !== null && line.from !== line.lane) {
        const from = at(line.from);
        const path = `M${from} 0 C ${from} ${middle * 0.7}, ${here} ${middle * 0.2}, ${here} ${middle}`;
        svg.append(draw("path", { d: path, class: kind }));
        if (!isLast) svg.append(draw("path", { d: `M${here} ${middle} V${ROW_PX}`, class: kind }));
      } else {
        const top = line.begins && line.from === null ? middle : 0;
        svg.append(draw("path", { d: `M${here} ${top} V${isLast ? middle : ROW_PX}`, class: kind }));
      }
    }
    svg.append(draw("circle", { cx: x, cy: middle, r: 4, class: `dot dot-${step.status}` }));
    return svg;
  }
}
