"""Runs that worked become skills by themselves: a draft at first, in use when it has worked twice and passed the gate.

Rule: this only helps. What cannot be a skill is passed over, and no run waits for it longer than `PATIENCE_S`, or than
`WORDS_S` more where a model is asked for words.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import anyio

from ...errors import InvalidRequest, McpRuntimeError, NotFound, SkillRefused
from ...journal.rows import RunRow
from .library import SkillLibrary

PATIENCE_S = 5.0  # for the gate, after a second success
WORDS_S = 10.0  # more, where a model is then to describe it
MAX_SEEN = 10_000  # codes that were looked at, so that a repeated one costs nothing
MIN_LINES = 3  # of code that has structure

logger = logging.getLogger(__name__)


class AutoSaver:
    """Looks at every run that ended well; `promotes` says whether a second success puts a draft in use."""

    def __init__(self, library: SkillLibrary, *, promotes: bool) -> None:
        self._library = library
        self._promotes = promotes
        self._seen: dict[bytes, None] = {}

    def should_consider(self, code: str, value: Mapping[str, Any] | None, calls: int) -> bool:
        """Return whether a run may be worth keeping, and its code has not been looked at yet."""
        lines = [
            line
            for line in code.splitlines()
            if line.strip() and not line.lstrip().startswith(("#", "import "))
        ]
        if not calls or len(lines) < MIN_LINES or not has_useful_result(value):
            return False
        digest = sha256(code.encode("utf-8", "surrogatepass")).digest()
        if digest in self._seen:
            return False
        if len(self._seen) >= MAX_SEEN:
            del self._seen[next(iter(self._seen))]
        self._seen[digest] = None
        return True

    async def consider_run(self, run: RunRow) -> str:
        """Keep a run if it is worth it, and return one line about that; "" if there is nothing to say."""
        try:
            with anyio.move_on_after(PATIENCE_S + (WORDS_S if self._library.describer else 0.0)):
                saved = await self._library.propose_draft(run, promotes=self._promotes)
                if saved is None or (saved.already_existed and saved.skill.state != "active"):
                    return ""
                skill = saved.skill
                if saved.already_existed:
                    return f"The skill {skill.name} does this: from skills.{skill.name} import run."
                if skill.state == "active":
                    return f"Kept as a skill: from skills.{skill.name} import run. {saved.note}".rstrip()
                return f"Kept as the draft skill {skill.id}: save_skill(run=...) checks it."
        except (SkillRefused, InvalidRequest, NotFound):
            return ""  # it is no skill, which nobody has asked for
        except McpRuntimeError as exc:
            logger.warning("run %s was not looked at as a skill: %s", run.id, exc)
        return ""


def has_useful_result(value: Mapping[str, Any] | None) -> bool:
    """Return whether a result is more than nothing."""
    if value is None or value.get("kind") != "json":
        return False
    try:
        return json.loads(value["text"]) not in (None, "", [], {}, True, False)
    except ValueError:
        return False
