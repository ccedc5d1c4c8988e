// The page of a skill: put a version in use, or take it out of use.

import { announce, find } from "./dom.js";
import { sendJson } from "./http.js";

const tools = find("[data-skill]");

tools?.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-state]");
  if (!button) return;
  button.disabled = true;
  const isPromoted = button.dataset.state === "promote";
  if (isPromoted) announce("The gate tests it…");
  try {
    const body = { version: Number(tools.dataset.version), is_promoted: isPromoted };
    await sendJson(`/skills/${tools.dataset.skill}/state`, body);
    location.href = `/skills/${tools.dataset.skill}?version=${tools.dataset.version}`;
  } catch (error) {
    announce(error.message, "error");
    button.disabled = false;
  }
});
