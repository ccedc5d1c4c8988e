// Small helpers for building elements; text is always set as text.

export const find = (selector, root = document) => root.querySelector(selector);
export const findAll = (selector, root = document) => [...root.querySelectorAll(selector)];

/** Return a new element with properties and children. */
export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

/** Return a new SVG element with attributes. */
export function draw(name, attributes = {}) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** Show a message for a few seconds; screen readers read it, too. */
export function announce(text, kind = "") {
  let area = find("#announcements");
  if (!area) {
    area = make("div", { id: "announcements", role: "status" });
    area.setAttribute("aria-live", "polite");
    document.body.append(area);
  }
  const message = make("div", { className: `toast ${kind}` }, text);
  area.append(message);
  setTimeout(() => message.remove(), kind === "error" ? 10_000 : 4_000);
}

/** Wait until the browser has painted what the page has; while nobody sees the page, until somebody does. */
export function waitForPaint() {
  return new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
}

/** Say whether the keyboard is used for writing, so that single keys are no commands. */
export function isWriting(event) {
  const target = event.target;
  return event.ctrlKey || event.metaKey || event.altKey ||
    target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName);
}
