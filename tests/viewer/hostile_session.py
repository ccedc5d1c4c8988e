"""A session whose every field has the hostile texts, as a journal may have them from anywhere.

Code and upstreams cannot bring them into all of these fields, because names and kinds are checked
where they arrive. Pages must not depend on that.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from mcpruntime_server.capabilities.skills.model import RecordedCase, Skill
from mcpruntime_server.capabilities.skills.store import SkillStore
from mcpruntime_server.journal.events import (
    AgentQuestionAsked,
    CallError,
    CallFinished,
    CallStarted,
    ClientModelRequest,
    FileEntry,
    FilesChanged,
    ModelUsageRecorded,
    OutputWritten,
    QuestionAnswered,
    QuestionAsked,
    RunError,
    RunFinished,
    RunStarted,
    RunValue,
    canonical_json,
)
from mcpruntime_server.journal.recording import RecordedCall
from mcpruntime_server.journal.store import Journal

from .hostile_texts import HOSTILE_TEXTS

SESSION = "s_hostile"
FUNCTION_SESSION = "s_function"  # whose state can be rebuilt
TAG = "<img src=x onerror=alert(1)>"
MANY = f"{TAG}\n" + "\n".join(HOSTILE_TEXTS)
ADDRESS = 'https://attacker.test/"><script>alert(1)</script>'
TEXTS = "texts = ({!r}, {!r})".format(TAG, f"{TAG}{TAG}")
CODE = f"""# {TAG}{TAG}
{TEXTS}
for text in texts:
    print(text)
open('made.html', 'w').write(texts[0])
{{text: [text] for text in texts}}"""
FUNCTION = f'''def find(text: "list['{TAG}']" = "{TAG}") -> "list['{TAG}']":
    """Return {TAG}"""
    return [text]
unused = "{TAG}"
find("{TAG}")'''
CALLS: dict[str, dict[str, Any]] = {
    f"tools.{TAG}.{TAG}": {"old_text": MANY, "new_text": f"{TAG}\n{MANY}", "edits": [{TAG: MANY}]},
    f"web.GET {TAG}": {"url": ADDRESS, "headers": {TAG: MANY, "Host": TAG}, "body": MANY},
    f"packages.{TAG}": {"requirements": list(HOSTILE_TEXTS)},
    f"agent.{TAG}": {"task": MANY, "name": TAG, "model": TAG},
    f"llm.{TAG}": {"prompt": MANY, "data": [MANY]},
    f"skills.{TAG}": {text: text for text in HOSTILE_TEXTS},
}
ERROR = RunError(type=TAG, message=MANY, traceback=MANY, line=3, hint=MANY)
CASE = RecordedCase(
    {TAG: MANY},
    (RecordedCall(1, f"tools.{TAG}", canonical_json({TAG: MANY}), 0, "read", 0, 1, value=MANY),),
    RunValue(kind="repr", text=MANY, type=TAG, cut=False),
)
SOURCE = f'''"""{TAG}"""


def run(text="{TAG}"):
    """{TAG}"""
    return text
'''


class SessionWriter:
    """Writes the session into a journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._parent: str | None = None
        self._step = 0
        self.runs: dict[str, str] = {}  # by what they have

    async def write(self, principal: str) -> None:
        """Write all steps; the last one waits for answers."""
        await self._journal.create_session(SESSION, TAG, principal)
        digests = await self._journal.put_blobs([f"{TAG}\n{ADDRESS}".encode(), CODE.encode()])
        paths = [TAG, *HOSTILE_TEXTS]
        files = [
            {path: FileEntry(digest=digest, size=9, mode=0o644) for path in paths}
            for digest in digests
        ]
        self._start("calls", CODE)
        for stream in ("stdout", "stderr"):
            self._append(OutputWritten(stream, f"{MANY}\n"))
        self._write_calls()
        self._append(ModelUsageRecorded(1, 10, 10, 0.5))
        self._append(FilesChanged(files[0]))
        self._append(RunFinished("error", error=ERROR))
        self._start("files", CODE)
        del files[1][HOSTILE_TEXTS[-1]]
        self._append(FilesChanged(files[1], [HOSTILE_TEXTS[-1]]))
        self._finish("repr", MANY)
        self._start("table", CODE)
        self._finish("json", json.dumps([{TAG: text, "n": text} for text in HOSTILE_TEXTS]))
        self._start("tree", CODE)
        self._finish("json", json.dumps({text: [text, {text: None}] for text in HOSTILE_TEXTS}))
        await self._journal.create_session(FUNCTION_SESSION, f"{TAG} works", principal)
        self._start("function", FUNCTION, FUNCTION_SESSION)
        self._finish("json", json.dumps([TAG]), FUNCTION_SESSION)
        await self._journal.flush()

    async def write_questions(self, principal: str) -> None:
        """Write a session that waits for answers of every kind."""
        await self._journal.create_session("s_asking", f"{TAG} asks", principal)
        self._start("questions", CODE, "s_asking")
        kinds = ("approval", "in_doubt", "question", "credential")
        for number, (kind, (target, args)) in enumerate(zip(kinds, CALLS.items(), strict=False), 1):
            call = CallStarted(number, target, canonical_json(args), "write", 0, 3)
            request = ClientModelRequest(prompt=MANY, schema={TAG: TAG})
            asked = QuestionAsked(
                f"q{number}",
                kind,
                number,
                time.time() + 3_600,
                hints=[MANY],
                model_request=request if kind == "question" else None,
                url=ADDRESS,
            )
            for event in (call, asked):
                self._append(event, "s_asking")
        agent = AgentQuestionAsked(
            "r_agent", TAG, "q9", "approval", 1, time.time() + 3_600, hints=[MANY], url=ADDRESS
        )
        self._append(agent, "s_asking")
        await self._journal.flush()

    def _write_calls(self) -> None:
        for number, (target, args) in enumerate(CALLS.items(), 1):
            self._append(CallStarted(number, target, canonical_json(args), "write", 0, 3))
            if number == 1:
                self._append(QuestionAsked("q1", "approval", 1, time.time() + 60, hints=[MANY]))
                self._append(QuestionAnswered("q1", "allow", "session", MANY, TAG))
            error = CallError(kind="tool", message=MANY, data=MANY) if number == 2 else None
            value = MANY if number == 3 else {TAG: [MANY]}
            self._append(CallFinished(number, None if error else value, error, 1.0))

    def _start(self, name: str, code: str, session: str = SESSION) -> None:
        self._step += 1
        run = f"r_{name.replace(' ', '_')}"
        self.runs[name] = run
        parent = self._parent if session == SESSION else None
        started = RunStarted(run, parent, self._step, code, f"<step {self._step}>", 60.0)
        self._parent = run
        self._append(started, session)

    def _append(self, event: Any, session: str = SESSION) -> None:
        self._journal.append(session, event, self._parent)

    def _finish(self, kind: str, text: str, session: str = SESSION) -> None:
        value = RunValue(kind=kind, text=text, type=TAG, cut=kind == "repr")
        self._append(RunFinished("ok", value, usage={"wall_ms": 2.0, "cpu_ms": 1.0}), session)


def write_skills(folder: Path, principal: str) -> None:
    """Write skills of a principal: a draft of two versions, and one that others may use."""
    store = SkillStore(folder).of_principal(principal)
    draft = Skill("hostile", TAG, SOURCE, (CASE,), reasons=(MANY,))
    store.add_version(draft)
    changed = SOURCE.replace("return text", f"return [text, '{TAG}']")
    store.add_version(Skill("hostile", TAG, changed, (CASE,), reasons=(MANY,)))
    shown = Skill("shared", TAG, SOURCE, state="active", is_hand_written=True)
    store.share_skill(store.add_version(shown))
