"""Save runs as skills without being asked, where `[skills] auto` wants that.

A run that makes calls becomes a draft. When another run does the same, the draft is tested at the
gate.

Rule: this only helps. What cannot be a skill is skipped, and no run waits for it longer than
`GATE_PATIENCE_S`, or `DESCRIPTION_PATIENCE_S` more where a model describes skills.
"""

from __future__ import annotations

import json
import logging
from hashlib import sha256

import anyio

from ...errors import InvalidRequest, McpRuntimeError, NotFound, SkillRefused
from ...journal.events import RunValue
from ...journal.rows import RunRow
from .saving import SkillSaver
from .signing import is_held_back

GATE_PATIENCE_S = 5.0
DESCRIPTION_PATIENCE_S = 10.0
MAX_REMEMBERED = 10_000  # codes that were considered; a repeated one is skipped at once
MIN_LINES = 3  # of code; shorter code is not worth saving

logger = logging.getLogger(__name__)


class AutoSaver:
    """Considers every run that succeeded.

    If it `may_activate`, a second success activates a draft.
    """

    def __init__(self, saver: SkillSaver, *, may_activate: bool) -> None:
        self._saver = saver
        self._may_activate = may_activate
        self._considered: dict[bytes, None] = {}

    def should_consider(self, code: str, value: RunValue | None, call_count: int) -> bool:
        """Return whether a run may be worth saving, and its code is new."""
        if not call_count or not has_useful_result(value):
            return False
        lines = (line.strip() for line in code.splitlines())
        if sum(bool(line) and not line.startswith(("#", "import ")) for line in lines) < MIN_LINES:
            return False
        digest = sha256(code.encode("utf-8", "surrogatepass")).digest()
        if digest in self._considered:
            return False
        if len(self._considered) >= MAX_REMEMBERED:
            del self._considered[next(iter(self._considered))]
        self._considered[digest] = None
        return True

    async def consider_run(self, run: RunRow) -> str:
        """Save a run if it is worth it; return a line about that, "" if there is none."""
        patience_s = GATE_PATIENCE_S
        if self._saver.has_describer:
            patience_s += DESCRIPTION_PATIENCE_S
        try:
            with anyio.move_on_after(patience_s):
                saved = await self._saver.propose_draft(run, may_activate=self._may_activate)
                if saved is None:
                    return ""
                skill = saved.skill
                use = f"from skills.{skill.name} import run."
                if is_held_back(skill):
                    return (
                        "" if saved.already_existed else f"Saved as {skill.id}. {skill.reasons[0]}"
                    )
                if skill.state != "active":
                    note = f"Saved as the draft skill {skill.id}: save_skill(run=...) checks it."
                    return "" if saved.already_existed else note
                if saved.already_existed:
                    return f"The skill {skill.name} does this: {use}"
                return f"Saved as a skill: {use} {saved.note}".rstrip()
        except (SkillRefused, InvalidRequest, NotFound):
            return ""  # nobody asked for a skill
        except McpRuntimeError as exc:
            logger.warning("run %s could not be considered as a skill: %s", run.id, exc)
        return ""


def has_useful_result(value: RunValue | None) -> bool:
    """Return whether a run's value is more than nothing, or yes or no."""
    if value is None or value["kind"] != "json":
        return False
    try:
        return json.loads(value["text"]) not in (None, "", [], {}, True, False)
    except ValueError:
        return False
