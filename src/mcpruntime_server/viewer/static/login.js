// The page on which a browser logs in: with a token, or with the code of a link.

import { find, make } from "./dom.js";

const form = find("[data-login]");
const code = new URLSearchParams(location.hash.slice(1)).get("code");

if (code) {
  history.replaceState(null, "", location.pathname + location.search);
  find("#token").disabled = true;
  form.append(make("input", { type: "hidden", name: "code", value: code }));
  form.submit();
} else {
  // A link on another site opens this page without the cookie that the browser has.
  const response = await fetch("/ui/login");
  if (response.status === 204) location.reload();
}
