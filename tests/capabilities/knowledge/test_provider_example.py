"""The example of a provider in the documents works unchanged."""

from __future__ import annotations

import re
from pathlib import Path

from .conftest import OpenProviders, refresh_providers

DOCUMENT = (Path(__file__).parents[3] / "docs/writing-a-provider.md").read_text("utf-8")


async def test_the_example_of_a_provider_works(opened: OpenProviders, tmp_path: Path) -> None:
    [source] = [
        text
        for text in re.findall(r"^```python[^\n]*\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
        if "class Provider" in text
    ]
    (tmp_path / "modules.py").write_text(source)
    async with opened(modules={"python": str(tmp_path / "modules.py")}) as providers:
        await refresh_providers(providers)
        [summary] = await providers.describe_all()
        assert (summary["documents"], summary["skipped"], summary["problem"]) == (3, {}, "")
        [best, *_] = (await providers.search("population standard deviation"))["passages"]
        assert best["name"] == "statistics.txt"
