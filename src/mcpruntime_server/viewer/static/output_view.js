// The output of a step: more lines are loaded where the reader gets to.

import { find, findAll, waitForPaint } from "./dom.js";
import { loadDocument, loadJson } from "./http.js";

const MAX_LINES = 2_000; // that are kept in the page
const NEAR_PX = 600;

export class OutputView {
  #element;
  #isLoading = false;
  #observer;

  constructor(element) {
    this.#element = element;
    this.#observer = new IntersectionObserver(
      (entries) => {
        const seen = entries.find((each) => each.isIntersecting);
        if (seen) this.#extend(seen.target);
      },
      { root: element, rootMargin: `${NEAR_PX}px` },
    );
    element.addEventListener("click", (event) => {
      const more = event.target.closest(".more");
      if (more) {
        event.preventDefault();
        this.#extend(more);
      }
    });
    this.#watch();
    if (element.dataset.isUnmeasured) this.#measure();
  }

  /** Say how many lines there are, which the server did not know yet. */
  async #measure() {
    await waitForPaint(); // counting keeps the server busy
    if (!this.#element.isConnected) return;
    const size = await loadJson(`${this.#element.dataset.output}/size`).catch(() => null);
    if (!size || !this.#element.isConnected) return;
    delete this.#element.dataset.isUnmeasured;
    const section = this.#element.closest("section");
    find("[data-line-count]", section).textContent = size.counted;
    const dropped = find("[data-dropped]", section);
    dropped.hidden = !size.dropped;
    dropped.textContent = size.dropped;
  }

  get isAtEnd() {
    const { scrollTop, clientHeight, scrollHeight } = this.#element;
    return scrollTop + clientHeight >= scrollHeight - 8;
  }

  async scrollToEnd() {
    if (this.#element.dataset.isUnmeasured) await this.#load("last");
    this.#element.scrollTop = this.#element.scrollHeight;
  }

  /** Show a line, loading the lines around it if it is not here. */
  async showLine(number) {
    if (!find(`#O${number}`, this.#element)) {
      await this.#load(Math.max(number - 50, 1));
    }
    return find(`#O${number}`, this.#element);
  }

  async #load(line) {
    const page = await loadDocument(`${this.#element.dataset.output}?line=${line}`);
    const loaded = find(".output", page);
    this.#element.replaceChildren(...document.adoptNode(loaded).childNodes);
    this.#watch();
  }

  #watch() {
    this.#observer.disconnect();
    for (const more of findAll(".more", this.#element)) this.#observer.observe(more);
  }

  async #extend(more) {
    if (this.#isLoading || !more.isConnected) return;
    this.#isLoading = true;
    try {
      const page = await loadDocument(more.href);
      if (more.isConnected) this.#insert(find(".output", page), "later" in more.dataset, more);
    } finally {
      this.#isLoading = false;
    }
  }

  #insert(loaded, isLater, more) {
    const lines = find(".lines", this.#element);
    const known = new Set([...lines.children].map((line) => line.id));
    const added = [...find(".lines", loaded).children].filter((line) => !known.has(line.id));
    const before = this.#element.scrollHeight - this.#element.scrollTop;
    if (isLater) lines.append(...added);
    else lines.prepend(...added);
    const next = find(isLater ? "[data-later]" : "[data-earlier]", loaded);
    if (next) more.replaceWith(next);
    else more.remove();
    this.#trim(lines, isLater);
    if (!isLater) this.#element.scrollTop = this.#element.scrollHeight - before;
    this.#watch();
  }

  /** Remove lines that the reader has left, and offer to load them again. */
  #trim(lines, isLater) {
    const surplus = lines.children.length - MAX_LINES;
    if (surplus <= 0) return;
    const all = [...lines.children];
    const removed = isLater ? all.slice(0, surplus) : all.slice(-surplus);
    removed.forEach((line) => line.remove());
    const edge = Number((isLater ? lines.firstElementChild : lines.lastElementChild).id.slice(1));
    const name = isLater ? "data-earlier" : "data-later";
    let link = find(`[${name}]`, this.#element);
    if (!link) {
      link = document.createElement("a");
      link.className = "more";
      link.setAttribute(name, "");
      if (isLater) this.#element.prepend(link);
      else lines.after(link);
    }
    const line = isLater ? Math.max(edge - 400, 1) : edge + 1;
    link.href = `${this.#element.dataset.output}?line=${line}`;
    link.textContent = isLater ? "Earlier lines" : "More lines";
  }
}
