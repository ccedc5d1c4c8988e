"""How much a browser loads, and what is compressed."""

from __future__ import annotations

from playwright.async_api import Request

from .conftest import Viewer

FIRST_VISIT_BYTES = 150_000


async def test_a_first_visit_loads_few_bytes_and_only_pages_are_not_compressed(
    viewer: Viewer,
) -> None:
    async with viewer.open() as page:
        [cookie] = await page.context.cookies()
        context = await viewer.browser.new_context()
        await context.add_cookies([cookie])  # type: ignore[list-item]
        visitor = await context.new_page()
        loaded: list[Request] = []

        def note(request: Request) -> None:
            loaded.append(request)

        visitor.on("requestfinished", note)
        await visitor.goto(f"{viewer.base}/s/{viewer.session}")
        await visitor.wait_for_selector(".rail-row")
        size, compressed = 0, {}
        for request in loaded:
            response = await request.response()
            assert response is not None
            size += (await request.sizes())["responseBodySize"]
            path = request.url.removeprefix(viewer.base).partition("?")[0]
            compressed[path] = response.headers.get("content-encoding") == "gzip"
        await context.close()
    assert 10_000 < size < FIRST_VISIT_BYTES
    assert all(request.url.startswith(f"{viewer.base}/") for request in loaded)
    pages = [path for path in compressed if not path.startswith("/static/")]
    assert [compressed[path] for path in pages if path.endswith("/steps")] == [True]
    assert not any(compressed[path] for path in pages if not path.endswith("/steps"))
    assert all(each for path, each in compressed.items() if path.endswith("viewer.css"))


async def test_a_stream_of_changes_and_an_error_are_not_compressed(viewer: Viewer) -> None:
    async with viewer.open() as page:
        [cookie] = await page.context.cookies()
    headers = {"Cookie": f"{cookie['name']}={cookie['value']}", "Accept-Encoding": "gzip"}
    async with viewer.service.http(**headers) as http:
        path = f"{viewer.base}/s/{viewer.session}"
        async with http.stream("GET", f"{path}/changes") as changes:
            assert "content-encoding" not in changes.headers
            assert (await anext(changes.aiter_bytes())).startswith(b"retry:")
        missing = await http.get(f"{path}/r_{'x' * 2000}/panel")
        assert missing.status_code == 404
        assert "content-encoding" not in missing.headers
