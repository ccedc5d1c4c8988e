"""Questions of code, answered: within budgets, from the cache, again where it passes, and as the schema wants it.

Rule 1: a question is asked only when what it may cost is reserved, and what it has cost is counted, however it ends.
Rule 2: errors are errors, never texts that look like answers. Credentials are in none of them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any

import anyio

from ...config import BudgetLimits, LlmSettings
from ...errors import CallFailed, JournalFailed
from ...journal.call_scope import CallScope, current_call_scope
from ...journal.events import ModelUsageRecorded, canonical_json
from ...journal.store import Journal
from ..json_schemas import check_schema
from ..model_requests import (
    Completion,
    Messages,
    ModelBackend,
    ModelRequest,
    ModelResponse,
    ModelUsage,
)
from .budget import subtract_usage
from .budget_accounts import AccountRegistry, AnswerCache, BudgetAccount
from .budgeted_model import BudgetedModel, answer_request
from .client_model import ClientModel

MAX_BATCH = 10_000  # questions of one call
MAX_TEXT_CHARS = 20_000_000  # characters of a prompt or of its data
MAX_ANSWER_TOKENS = 10_000_000  # of an answer
MAX_BATCH_ANSWER_CHARS = 20_000_000  # characters of the answers to a batch
BATCH_ANSWERS_TOO_LONG = f"The answers to a batch have at most {MAX_BATCH_ANSWER_CHARS:,} characters: ask fewer questions at once."

logger = logging.getLogger(__name__)


class ModelService:
    """What `ask_llm` and its like ask."""

    def __init__(
        self,
        settings: LlmSettings,
        journal: Journal,
        backend: ModelBackend | None,
        resolve_data: Callable[[Any], AbstractAsyncContextManager[Any]] = nullcontext,
    ) -> None:
        self._resolve_data = resolve_data  # yields what data is that is only a reference, for as long as it is needed
        self._settings = settings
        self._journal = journal
        self._model = BudgetedModel(settings, backend)
        self._accounts = AccountRegistry(settings, journal)

    async def handle_call(self, target: str, args: dict[str, Any]) -> Any:
        """Answer `llm.ask {question}`, `llm.batch {questions}` or `llm.usage {}`; raises `CallFailed`."""
        async with self._accounts.open_account(current_call_scope()) as purse:
            if target == "llm.usage":
                return purse.budget.usage_report()
            if target == "llm.ask":
                return response_data(await self._answer_item(args, purse))
            if target == "llm.batch":
                return await self._answer_batch(args.get("questions"), purse)
        raise CallFailed("unknown_target", f"Models are not asked with {target!r:.80}.")

    async def ask_for_session(
        self, session_id: str, prompt: str, data: str, schema: Mapping[str, Any]
    ) -> Any:
        """Return the answer to a question of the server's own about a session, whose owner's budget pays.

        Raises `CallFailed`. The client's own model is not asked: no run waits for it.
        """
        if self._model.is_client_model:
            raise CallFailed(
                "no_model", "There is no model but the client's own, which can name what it saves."
            )
        question = self._parse_request({"prompt": prompt, "data": data, "schema": schema})
        return (
            await self._ask_cached(
                question,
                BudgetAccount(await self._accounts.find_owner_budget(session_id), AnswerCache()),
            )
        ).value

    # one question -----------------------------------------------------------------------------------

    async def _answer_item(self, item: Any, account: BudgetAccount) -> ModelResponse:
        """Answer a question as code has sent it, with what its data refers to."""
        if not isinstance(item, dict):
            return await self._ask_cached(self._parse_request(item), account)
        async with self._resolve_data(item.get("data")) as data:
            return await self._ask_cached(self._parse_request({**item, "data": data}), account)

    async def _ask_cached(self, request: ModelRequest, account: BudgetAccount) -> ModelResponse:
        key = sha256(
            canonical_json([request.__dict__]).encode("utf-8", "surrogatepass")
        ).hexdigest()
        return await account.answer_cache.get_or_ask(
            key, lambda: answer_request(request, partial(self._complete, request, account))
        )

    async def _complete(
        self, request: ModelRequest, account: BudgetAccount, messages: Messages
    ) -> Completion:
        """Put messages before the model, and journal what that cost."""
        return await self._model.complete(
            messages,
            account.budget,
            model=request.model,
            max_tokens=request.max_tokens,
            schema=request.schema,
            record_usage=partial(self._record_usage, account),
        )

    def _record_usage(self, account: BudgetAccount, used: ModelUsage, ms: float) -> None:
        if not account.run_id:
            return
        spent = ModelUsageRecorded(
            used.calls, used.tokens_in, used.tokens_out, used.usd, round(ms, 3)
        )
        try:
            self._journal.append(account.session_id, spent, account.run_id)
        except JournalFailed as exc:
            logger.error(
                "what a question in run %s has cost was not journaled: %s", account.run_id, exc
            )

    # agents -----------------------------------------------------------------------------------------

    def check_can_drive_agents(self, model: str) -> None:
        """Raise `CallFailed` unless there is a model that can drive an agent."""
        self._model.check_can_drive_agents(model)

    @asynccontextmanager
    async def open_agent_account(
        self, caller: CallScope, limits: BudgetLimits
    ) -> AsyncIterator[BudgetAccount]:
        """Yield what an agent pays from that a run begins; raises `CallFailed` beyond the depth."""
        async with self._accounts.open_account(caller) as purse:
            yield replace(
                purse, budget=purse.budget.add_agent_budget(limits), answer_cache=AnswerCache()
            )

    @contextmanager
    def charge_session(self, session_id: str, account: BudgetAccount) -> Iterator[None]:
        """Have what code in an agent's session asks be paid from the agent's purse."""
        self._accounts.agent_accounts[session_id] = account
        try:
            yield
        finally:
            del self._accounts.agent_accounts[session_id]

    async def complete_for_agent(
        self, messages: Messages, account: BudgetAccount, model: str
    ) -> Completion:
        """Return what the model says that drives an agent; raises `CallFailed`."""
        return await self._model.complete(
            messages, account.budget, model=model, record_usage=partial(self._record_usage, account)
        )

    def run_costs(self, run_id: str) -> dict[str, float]:
        """Return what a run has paid models for, apart from that its agents have; empty if nothing."""
        budget = self._accounts.find_run_budget(run_id)
        if budget is None:
            return {}
        own, agents = (
            usage_data(subtract_usage(budget.used, budget.agents_usage)),
            usage_data(budget.agents_usage),
        )
        found = {
            **{f"llm_{what}": own[what] for what in own},
            **{f"agents_{what}": agents[what] for what in agents},
        }
        return {
            name: amount
            for name, amount in {"agents": budget.agents_started, **found}.items()
            if amount
        }

    # many -------------------------------------------------------------------------------------------

    async def _answer_batch(self, items: Any, account: BudgetAccount) -> list[dict[str, Any]]:
        """Answer many questions, each with a slot of its own, in their order."""
        if not isinstance(items, list) or len(items) > MAX_BATCH:
            raise CallFailed(
                "invalid_arguments", f"A batch is a list of at most {MAX_BATCH:,} questions."
            )
        slots: list[dict[str, Any]] = [{}] * len(items)
        left = iter(enumerate(items))
        chars = 0

        async def work() -> None:
            nonlocal chars
            for number, each in left:
                try:
                    answer = await self._answer_item(each, account)
                    chars += answer.text_chars
                    if chars > MAX_BATCH_ANSWER_CHARS:
                        raise CallFailed("llm_too_long", BATCH_ANSWERS_TOO_LONG)
                    slots[number] = {"ok": True, **response_data(answer)}
                except CallFailed as exc:
                    slots[number] = {
                        "ok": False,
                        "error": {"kind": exc.kind, "message": str(exc), "data": exc.data},
                    }

        async with anyio.create_task_group() as tasks:
            at_once = None if self._model.is_client_model else self._settings.run.concurrency
            for _ in range(min(at_once or len(items), len(items))):
                tasks.start_soon(work)
        return slots

    def _parse_request(self, item: Any) -> ModelRequest:
        """Return a question as code has sent it; raises `CallFailed`."""
        if not isinstance(item, dict) or not isinstance(item.get("prompt"), str):
            raise CallFailed("invalid_arguments", "A question has a prompt, which is a text.")
        prompt, data, schema = item["prompt"], item.get("data"), item.get("schema")
        model, limit = item.get("model") or "", item.get("max_tokens", self._settings.max_tokens)
        data = "" if data is None else data if isinstance(data, str) else canonical_json(data)
        if max(len(prompt), len(data)) > MAX_TEXT_CHARS:
            raise CallFailed(
                "invalid_arguments",
                f"A prompt or its data has at most {MAX_TEXT_CHARS:,} characters.",
            )
        if (
            not isinstance(model, str)
            or type(limit) is not int
            or not 0 < limit <= MAX_ANSWER_TOKENS
        ):
            raise CallFailed(
                "invalid_arguments",
                f"`model` is a name, and `max_tokens` from 1 to {MAX_ANSWER_TOKENS:,}.",
            )
        if schema is not None:
            check_schema(schema)
        return ModelRequest(prompt, data, schema, model, limit)


def response_data(response: ModelResponse) -> dict[str, Any]:
    """Return an answer as code gets it."""
    return {
        "value": response.value,
        "usage": usage_data(response.usage),
        "cached": response.is_cached,
    }


def usage_data(usage: ModelUsage) -> dict[str, Any]:
    """Return what questions cost, as code gets it."""
    return {
        "calls": usage.calls,
        "tokens_in": usage.tokens_in,
        "tokens_out": usage.tokens_out,
        "usd": usage.usd,
    }


def select_backend(settings: LlmSettings, process: ModelBackend) -> ModelBackend | None:
    """Return who answers, as the settings have it; None if nobody does."""
    brokers: Mapping[str, ModelBackend] = {
        "litellm": process,
        "caller": ClientModel(),
        "sampling": ClientModel(),
    }
    return brokers.get(settings.effective_broker)
