"""The queue of approvals and plans."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from playwright.async_api import expect

from mcpruntime_server.viewer.approval_pages import find_replacements

from .conftest import Viewer
from .demo_session import REPLACE

ASK = "from tools.counted import add\nadd(item={item!r}).result >= 0"


async def ask(viewer: Viewer, item: str, session: str, **more: object) -> str:
    """Execute code that needs an approval; return its run."""
    async with viewer.api() as api:
        body = {"code": ASK.format(item=item), "session": session, "wait_s": 30, **more}
        run: str = (await api.post("/execute", body)).json()["run"]
        return run


async def finish(viewer: Viewer, run: str) -> str:
    """Return how a run ends."""
    async with viewer.api() as api:
        status: str = (await api.read_events(run))[-1].data["status"]
        return status


async def test_a_question_appears_at_once_and_keys_answer_it(viewer: Viewer) -> None:
    async with viewer.open("/approvals") as page:
        await expect(page.locator(".empty")).to_be_visible()
        run = await ask(viewer, "<img src=x>", "keys")
        asked_at = time.monotonic()
        await expect(page.locator("[data-card]")).to_contain_text("<img src=x>")
        assert time.monotonic() - asked_at < 1.0
        await page.keyboard.press("j")
        await page.keyboard.press("a")
        await expect(page.locator("[data-card]")).to_have_count(0)
        assert await finish(viewer, run) == "ok"
        refused = await ask(viewer, "refused", "keys")
        await page.click("[data-answer=deny]")
        await expect(page.locator("[data-card]")).to_have_count(0)
        assert await finish(viewer, refused) == "error"
        for each, decision in ((run, "allow"), (refused, "deny")):  # the step says who has answered
            await page.goto(f"{viewer.base}/s/keys/{each}")
            await page.click("#call-1 summary >> nth=0")
            approval = page.locator("#call-1 .facts div", has_text="Approval")
            await expect(approval).to_contain_text(re.compile(rf"{decision} by ann\b.* after \d"))


async def test_a_question_says_where_its_text_came_from(viewer: Viewer) -> None:
    code = """from tools.counted import add
from tools.orders import query
customer = query(sql='SELECT email FROM customers ORDER BY id LIMIT 1')[0]['email']
add(item=f'write to {customer}')"""
    async with viewer.api() as api:
        request = {"code": code, "session": "origins", "wait_s": 30}
        run = (await api.post("/execute", request)).json()["run"]
    async with viewer.open("/approvals") as page:
        hint = page.locator("[data-card] .taint")
        await expect(hint).to_contain_text("item")
        await expect(hint).to_contain_text("orders.query")
        await page.click("[data-answer=deny]")
        await expect(page.locator("[data-card]")).to_have_count(0)
    assert await finish(viewer, run) == "error"


async def test_a_text_that_is_replaced_is_compared_with_the_new_one(viewer: Viewer) -> None:
    async with viewer.api() as api:
        request = {"code": REPLACE, "session": "replaced", "wait_s": 30}
        run = (await api.post("/execute", request)).json()["run"]
    async with viewer.open("/approvals") as page:
        card = page.locator("[data-card]")
        await expect(card.locator(".diff-removed")).to_contain_text(["10.00", "Shipping: 4.90"])
        await expect(card.locator(".diff-added")).to_contain_text(["", "Shipping: 5.90"])
        await expect(card.locator(".diff-same").first).to_contain_text("# Prices")
        names = card.locator(".tree .key")
        await expect(names).to_have_text(["path", "new_text", "old_text"])
        await page.click("[data-answer=allow]")
        await expect(card).to_have_count(0)
    assert await finish(viewer, run) == "ok"


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        ({"old_text": "a\nb", "new_text": "a\nc"}, [["b", "c"]]),
        ({"edits": [{"oldText": "x", "newText": "y"}, {"old": "1", "new": "2"}]}, ["xy", "12"]),
        ({"search": "same", "replace": "same"}, []),
        ({"old_text": 1, "new_text": "a"}, []),
        ({"old_text": "a"}, []),
    ],
)
def test_texts_that_replace_others_are_found_by_their_names(
    arguments: dict[str, Any], changed: list[Any]
) -> None:
    found = [
        [line.text for line in lines if line.kind in ("removed", "added")]
        for lines in find_replacements(arguments)
    ]
    assert found == [list(each) for each in changed]


@pytest.mark.parametrize("scope", ["run", "session"])
async def test_calls_are_allowed_for_the_run_or_the_session(viewer: Viewer, scope: str) -> None:
    code = "from tools.counted import add\n[add(item=item).result > 0 for item in ('a', 'b')]"
    body = {"code": code, "session": f"for the {scope}", "wait_s": 30}
    async with viewer.api() as api, viewer.open("/approvals") as page:
        run = (await api.post("/execute", body)).json()["run"]
        async with viewer.open(f"/s/for the {scope}") as other:
            await expect(other.locator(".rail-time")).to_have_text("waiting")
            await expect(other.locator("[data-live]")).to_be_visible()
        await expect(page.locator("[data-card]")).to_have_count(1)
        await page.keyboard.press("j")
        await page.keyboard.press(scope[0])
        await expect(page.locator(".toast")).to_have_text(f"Allowed for the {scope}.")
        assert await finish(viewer, run) == "ok"
        again = (await api.post("/execute", body)).json()
        assert len(again["waiting_for"]) == (scope == "run")
        await api.post(f"/runs/{again['run']}/cancel")
        await page.goto(f"{viewer.base}/s/{again['session']}/{run}")
        await page.click("#call-1 summary >> nth=0")
        approval = page.locator("#call-1 .facts")
        await expect(approval).to_contain_text(f"allow for the {scope} by ann")


async def test_the_second_of_two_browsers_is_told(viewer: Viewer) -> None:
    run = await ask(viewer, "twice", "two browsers")
    async with viewer.open("/approvals") as first, viewer.open("/approvals") as second:
        await second.route("**/approvals/changes", lambda route: route.abort())
        await second.reload()
        await first.click("[data-answer=allow]")
        await expect(first.locator("[data-card]")).to_have_count(0)
        await second.click("[data-answer=deny]")
        await expect(second.locator(".toast.error")).to_contain_text("Somebody else was faster.")
        await expect(second.locator("[data-card]")).to_have_count(0)
    assert await finish(viewer, run) == "ok"


async def test_a_plan_is_made(viewer: Viewer) -> None:
    await ask(viewer, "planned", "plans", dry_run=True)
    async with viewer.open("/approvals") as page:
        await page.click("text=Make this call")
        await expect(page.locator("[data-card]")).to_have_count(0)
        await page.goto(f"{viewer.base}/s/plans")
        await expect(page.locator(".panel .pill").first).to_have_text("ok")


async def test_a_token_without_the_scope_cannot_answer(viewer: Viewer) -> None:
    run = await ask(viewer, "x", "scopes")
    token = viewer.service.create_token("ann", "--scope", "read")
    async with viewer.open("/approvals", token) as page:
        await expect(page.locator("[data-card]")).to_contain_text("does not allow an answer")
        await expect(page.locator("[data-answer]")).to_have_count(0)
    async with viewer.open("/approvals") as page:
        await page.click("[data-answer=deny]")
        await expect(page.locator("[data-card]")).to_have_count(0)
    assert await finish(viewer, run) == "error"
