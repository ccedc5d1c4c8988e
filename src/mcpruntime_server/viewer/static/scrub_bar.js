// The bar over all steps: height and heat are time, the strip below is what models cost.

import { formatDuration, formatMoney } from "./formats.js";

const COST_PX = 4;
const GAP_PX = 3;
const MAX_SLOT_PX = 56; // few steps do not fill the bar
const MIN_HEIGHT = 0.12;
const FAILED = new Set(["error", "timeout", "crashed"]);

export class ScrubBar {
  #steps = [];
  #selected = -1;
  #rows;
  #drawing = 0;
  #bars = document.createElement("canvas"); // without the selection, which changes often

  constructor(canvas, hint, rows, onSelect) {
    this.canvas = canvas;
    this.#rows = rows;
    this.hint = hint;
    let isDragging = false;
    const pick = (event) => {
      const place = this.#placeAt(event.offsetX);
      if (place >= 0) onSelect(place);
    };
    canvas.addEventListener("pointerdown", (event) => {
      isDragging = true;
      canvas.setPointerCapture(event.pointerId);
      pick(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (isDragging) pick(event);
      this.#showHint(event.offsetX);
    });
    canvas.addEventListener("pointerup", () => { isDragging = false; });
    canvas.addEventListener("pointerleave", () => { this.hint.hidden = true; });
    new ResizeObserver(() => this.#drawBars()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#drawBars());
  }

  show(steps) {
    this.#steps = steps;
    this.#drawBars();
  }

  select(place) {
    this.#selected = place;
    const step = this.#steps[place];
    if (step) {
      this.canvas.setAttribute("aria-valuenow", String(place + 1));
      this.canvas.setAttribute("aria-valuemax", String(this.#steps.length));
      this.canvas.setAttribute("aria-valuetext", `Step ${step.step}, ${step.status}`);
    }
    this.#drawSoon();
  }

  #placeAt(x) {
    const place = Math.floor(x / this.#slot);
    return Math.min(Math.max(place, 0), this.#steps.length - 1);
  }

  /** The width of a step. */
  get #slot() {
    return Math.min(this.canvas.clientWidth / Math.max(this.#steps.length, 1), MAX_SLOT_PX);
  }

  #showHint(x) {
    const place = this.#placeAt(x);
    const step = this.#steps[place];
    if (!step) return;
    const cost = step.usd ? ` · ${formatMoney(step.usd)}` : "";
    const code = this.#rows.get(place)?.code.slice(0, 60) ?? "";
    this.hint.textContent = [step.step, code, `${formatDuration(step.duration_ms)}${cost}`].filter(Boolean).join("  ");
    this.hint.hidden = false;
    const half = this.hint.offsetWidth / 2;
    const left = Math.min(Math.max(x, half), this.canvas.clientWidth - half);
    this.hint.style.transform = `translateX(${left - half}px)`;
  }

  #drawSoon() {
    cancelAnimationFrame(this.#drawing);
    this.#drawing = requestAnimationFrame(() => this.#draw());
  }

  #drawBars() {
    const { canvas } = this;
    const ratio = devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    if (!width) return;
    for (const each of [canvas, this.#bars]) {
      each.width = width * ratio;
      each.height = height * ratio;
    }
    const context = this.#bars.getContext("2d");
    context.scale(ratio, ratio);
    const colours = readColours(canvas);
    const slot = this.#slot;
    const gap = slot > 6 ? 2 : slot > 3 ? 1 : 0;
    const longest = this.#steps.reduce((most, step) => Math.max(most, step.duration_ms ?? 0), 1);
    const dearest = this.#steps.reduce((most, step) => Math.max(most, step.usd), 0);
    const room = height - COST_PX - GAP_PX;
    const drawStep = (step, place) => {
      const heat = Math.log1p(step.duration_ms ?? longest) / Math.log1p(longest);
      const bar = room * Math.max(heat, MIN_HEIGHT);
      const x = place * slot + gap / 2;
      const span = Math.max(slot - gap, 0.75);
      context.globalAlpha = step.is_current || step.is_live ? 1 : 0.4;
      context.fillStyle = colourOf(step, heat, colours);
      roundedBar(context, x, room - bar, span, bar);
      if (step.usd > 0) {
        context.globalAlpha = 0.35 + 0.65 * (step.usd / dearest);
        context.fillStyle = colours.cost;
        roundedBar(context, x, height - COST_PX, span, COST_PX);
      }
    };
    // Where steps are narrower than a pixel, a failure must not be hidden by its neighbours.
    this.#steps.forEach((step, place) => FAILED.has(step.status) || drawStep(step, place));
    this.#steps.forEach((step, place) => FAILED.has(step.status) && drawStep(step, place));
    this.#draw();
  }

  #draw() {
    const { canvas } = this;
    const context = canvas.getContext("2d");
    context.resetTransform();
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (this.#bars.width) context.drawImage(this.#bars, 0, 0);
    if (this.#selected < 0 || !this.#steps.length) return;
    const ratio = devicePixelRatio || 1;
    context.scale(ratio, ratio);
    const { accent, selection } = readColours(canvas);
    const slot = this.#slot;
    const x = this.#selected * slot;
    context.fillStyle = selection;
    context.fillRect(x, 0, Math.max(slot, 2), canvas.clientHeight);
    context.fillStyle = accent;
    context.fillRect(x + Math.max(slot, 2) / 2 - 1, 0, 2, canvas.clientHeight);
  }
}

function colourOf(step, heat, colours) {
  if (FAILED.has(step.status)) return colours.failed;
  if (step.status === "waiting") return colours.waiting;
  if (step.is_live) return colours.running;
  return colours.heat[Math.min(Math.floor(heat * heat * colours.heat.length), colours.heat.length - 1)];
}

function readColours(canvas) {
  const styles = getComputedStyle(canvas);
  const read = (name) => styles.getPropertyValue(name).trim();
  return {
    accent: read("--accent"), selection: read("--selection"), failed: read("--bad"),
    waiting: read("--warn"), running: read("--accent"), cost: read("--cost"),
    heat: [0, 1, 2, 3].map((level) => read(`--heat-${level}`)),
  };
}

function roundedBar(context, x, y, width, height) {
  context.beginPath();
  context.roundRect(x, y, width, height, Math.min(2, width / 2));
  context.fill();
}
