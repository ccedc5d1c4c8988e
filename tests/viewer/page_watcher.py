"""Watches what a page does that it must not: scripts, requests to others, navigations."""

from __future__ import annotations

from playwright.async_api import Page, expect

WATCH = """
globalThis.findings = [];
const note = (kind) => (event) => findings.push(`${kind} ${event.violatedDirective ?? ""}`);
document.addEventListener("securitypolicyviolation", note("policy"));
globalThis.alert = () => { findings.push("executed"); };
"""
FIND = """(linked) => {
  const found = [...findings];
  if (globalThis.executed) found.push("executed");
  for (const element of document.querySelectorAll("*")) {
    for (const { name, value } of element.attributes) {
      if (name.startsWith("on")) found.push(`${element.tagName} has ${name}`);
      const isAddress = ["href", "src", "action", "formaction", "data", "srcdoc"].includes(name);
      const isLink = linked && element.tagName === "A" && value.startsWith(linked);
      const isOwn = isLink || (/^([/#]|blob:)/.test(value) && !value.startsWith("//"));
      if (isAddress && !isOwn) found.push(`${element.tagName} ${name}=${value}`);
    }
  }
  const foreign = "iframe, object, embed, base, marquee, style, math, video, audio, template";
  for (const element of document.querySelectorAll(foreign)) found.push(element.tagName);
  for (const script of document.scripts) if (script.text) found.push("an inline script");
  return found;
}"""


class Watcher:
    """Collects what a page does that it must not: scripts, requests to others, navigations.

    Pages may have links to addresses that begin with `linked`.
    """

    def __init__(self, page: Page, base: str, linked: str = "") -> None:
        self._page = page
        self._base = base
        self._linked = linked
        self.findings: list[str] = []
        page.on("request", lambda request: self._check_address(request.url))
        page.on("console", lambda message: self._check_message(message.type, message.text))
        page.on("dialog", lambda dialog: self.findings.append(dialog.message))

    def _check_address(self, address: str) -> None:
        if not address.startswith((self._base, "file:", "data:image/png")):
            self.findings.append(f"request of {address[:200]}")

    def _check_message(self, kind: str, text: str) -> None:
        if kind == "error":
            self.findings.append(text[:500])

    async def visit(self, path: str, shown: str) -> None:
        """Open a page and wait until it shows a text, with everything unfolded."""
        await self._page.goto(self._base + path)
        await expect(self._page.locator("main")).to_contain_text(shown)
        await self._page.evaluate(
            "() => document.querySelectorAll('details').forEach((each) => { each.open = true; })"
        )

    async def check(self) -> None:
        """Check that nothing has happened on the page, which is still there."""
        await self._page.evaluate("() => new Promise(requestAnimationFrame)")
        self.findings += await self._page.evaluate(FIND, self._linked)
        assert self.findings == [], (self._page.url, self.findings)
