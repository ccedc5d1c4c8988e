"""Answer the model requests of code, within budgets, with a cache, retries and schemas.

Rule: a failure is an error, never a text that looks like an answer. Errors contain no credentials.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from functools import partial
from hashlib import sha256
from typing import Any, TypedDict

import anyio
from anyio import to_thread
from anyio.lowlevel import checkpoint

from ...config import BudgetLimits, LlmSettings
from ...errors import CallFailed
from ...journal.call_scope import MAX_MODEL_REQUEST_CHARS, CallScope, current_call_scope
from ...journal.events import canonical_json
from ...journal.store import Journal
from ...protocol.payloads import JsonObject
from ..call_arguments import invalid_arguments
from ..json_schemas import check_schema
from ..model_requests import Completion, Messages, ModelUsage, UsageData
from .budget_accounts import AccountRegistry, BudgetAccount
from .budgeted_model import BudgetedModel, ObserveRequest, ignore_request
from .client_model import ClientModel
from .model_backend import ModelBackend, ModelRequest, ModelResponse
from .structured_answers import answer_request

MAX_BATCH = 10_000  # requests of one call
MAX_OPEN_REQUESTS = 500  # of a batch at once; a result shows the client's model fewer
MAX_TURN_CHARS = 256 * 1024  # of a request; for more, the event loop serves others in between
MAX_TEXT_CHARS = 20_000_000  # of a prompt and, separately, of its data
MAX_ANSWER_TOKENS = 10_000_000
MAX_BATCH_ANSWER_CHARS = 20_000_000  # of all answers of a batch
BATCH_ANSWERS_TOO_LONG = (
    f"The answers of a batch have at most {MAX_BATCH_ANSWER_CHARS:,} characters: "
    "send fewer requests at once."
)

ResolveData = Callable[[Any], AbstractAsyncContextManager[Any]]


class ResponseData(TypedDict):
    """An answer as code receives it."""

    value: Any
    usage: UsageData
    cached: bool


class SlotError(TypedDict):
    """The reason why one request of a batch failed."""

    kind: str
    message: str
    data: Any


class AnsweredSlot(ResponseData):
    """The slot of an answered request of a batch."""

    ok: bool


class FailedSlot(TypedDict):
    """The slot of a failed request of a batch."""

    ok: bool
    error: SlotError


BatchSlot = AnsweredSlot | FailedSlot


class AgentModel:
    """The model that drives one agent, with the agent's account."""

    def __init__(
        self, model: BudgetedModel, name: str, account: BudgetAccount, accounts: AccountRegistry
    ) -> None:
        self._model = model
        self._name = name
        self._account = account
        self._accounts = accounts

    @property
    def depth(self) -> int:
        """Number of agents above the agent's programs, itself included."""
        return self._account.budget.depth

    @property
    def used(self) -> ModelUsage:
        """The usage of the agent and its programs so far."""
        return self._account.budget.used

    async def complete(self, messages: Messages) -> Completion:
        """Return the model's completion; raises `CallFailed`."""
        return await self._model.complete(
            messages,
            self._account.budget,
            model=self._name,
            record_usage=self._account.record_usage,
        )

    @contextmanager
    def time_limit(self) -> Iterator[None]:
        """Cancel the body and raise `CallFailed` when the agent's time is used up."""
        with self._account.budget.time_limit():
            yield

    @contextmanager
    def charge_session(self, session_id: str) -> Iterator[None]:
        """Charge the requests of programs in a session to the agent's account."""
        with self._accounts.charge_session(session_id, self._account):
            yield


class ModelService:
    """Handles `ask_llm`, `ask_llm_batch` and `llm_usage`, and opens models that drive agents."""

    def __init__(
        self,
        settings: LlmSettings,
        journal: Journal,
        backend: ModelBackend | None,
        resolve_data: ResolveData = nullcontext,
        observe_request: ObserveRequest = ignore_request,
    ) -> None:
        self._settings = settings
        self._resolve_data = resolve_data  # yields the data of a request, reads a reference
        self._model = BudgetedModel(settings, backend, observe_request)
        self._accounts = AccountRegistry(settings, journal)

    async def handle_call(self, target: str, args: JsonObject) -> Any:
        """Answer `llm.ask {request}`, `llm.batch {questions}` or `llm.usage {}`.

        Raises `CallFailed`.
        """
        async with self._accounts.open_account(current_call_scope()) as account:
            if target == "llm.usage":
                return account.budget.usage_report()
            if target == "llm.ask":
                return response_data(await self._answer_item(args, account))
            if target == "llm.batch":
                return await self._answer_batch(args.get("questions"), account)
        raise CallFailed("unknown_target", f"There is no call {target!r:.80} for models.")

    async def ask_for_session(
        self, session_id: str, prompt: str, data: str, schema: Mapping[str, Any]
    ) -> Any:
        """Return the answer to a request of the server, paid by the principal of a session.

        Raises `CallFailed`. The client's own model cannot answer: it answers only while a run
        waits.
        """
        if self._model.is_client_model:
            raise CallFailed(
                "no_model",
                "The only model is the client's own, and the client can name what it saves itself.",
            )
        request = self._parse_request({"prompt": prompt, "data": data, "schema": schema})
        account = BudgetAccount(await self._accounts.find_owner_budget(session_id))
        return (await self._ask_cached(request, account)).value

    @asynccontextmanager
    async def open_agent_model(
        self, caller: CallScope, limits: BudgetLimits, model: str
    ) -> AsyncIterator[AgentModel]:
        """Yield the model for an agent that a run starts.

        The agent's budget is a level below the run's.

        Raises `CallFailed` if no model can drive the agent, or if its depth is not allowed.
        """
        self._model.check_can_drive_agents(model)
        async with self._accounts.open_account(caller) as account:
            yield AgentModel(self._model, model, account.for_agent(limits), self._accounts)

    def run_costs(self, run_id: str) -> dict[str, float]:
        """Return the model costs of a run as `llm_...`, and those of its agents as `agents_...`.

        Zeros are left out.
        """
        budget = self._accounts.find_run_budget(run_id)
        if budget is None:
            return {}
        agents = budget.agents_usage
        costs: dict[str, float] = {}
        if budget.agents_started:
            costs["agents"] = budget.agents_started
        for prefix, usage in (("llm", budget.used - agents), ("agents", agents)):
            costs |= {f"{prefix}_{name}": amount for name, amount in vars(usage).items() if amount}
        return costs

    # one request ------------------------------------------------------------------------------

    async def _answer_item(self, item: Any, account: BudgetAccount) -> ModelResponse:
        """Answer a request as code sent it."""
        if not isinstance(item, dict):
            return await self._ask_cached(self._parse_request(item), account)
        async with self._resolve_data(item.get("data")) as data:
            return await self._ask_cached(self._parse_request({**item, "data": data}), account)

    async def _ask_cached(self, request: ModelRequest, account: BudgetAccount) -> ModelResponse:
        if len(request.prompt) + len(request.data) <= MAX_TURN_CHARS:
            key = digest_request(request)
        else:
            key = await to_thread.run_sync(digest_request, request)
        complete = partial(self._complete, request, account)
        return await account.answer_cache.get_or_ask(key, lambda: answer_request(request, complete))

    async def _complete(
        self, request: ModelRequest, account: BudgetAccount, messages: Messages
    ) -> Completion:
        return await self._model.complete(
            messages,
            account.budget,
            model=request.model,
            max_tokens=request.max_tokens,
            schema=request.schema,
            record_usage=account.record_usage,
        )

    def _parse_request(self, item: Any) -> ModelRequest:
        """Return a request as code sent it; raises `CallFailed`."""
        if not isinstance(item, dict) or not isinstance(item.get("prompt"), str):
            raise invalid_arguments("A request needs a prompt, which is a text.")
        prompt, data, schema = item["prompt"], item.get("data"), item.get("schema")
        model = item.get("model") or ""
        max_tokens = item.get("max_tokens", self._settings.max_tokens)
        if data is None:
            data = ""
        elif not isinstance(data, str):
            data = canonical_json(data)
        if max(len(prompt), len(data)) > MAX_TEXT_CHARS:
            raise invalid_arguments(
                f"A prompt or its data has at most {MAX_TEXT_CHARS:,} characters."
            )
        if not isinstance(model, str):
            raise invalid_arguments("`model` must be the name of a model.")
        if type(max_tokens) is not int or not 0 < max_tokens <= MAX_ANSWER_TOKENS:
            raise invalid_arguments(
                f"`max_tokens` must be an integer from 1 to {MAX_ANSWER_TOKENS:,}."
            )
        if schema is not None:
            check_schema(schema)
        return ModelRequest(prompt, data, schema, model, max_tokens)

    # batches ----------------------------------------------------------------------------------

    async def _answer_batch(self, items: Any, account: BudgetAccount) -> list[BatchSlot]:
        """Answer many requests, each in a slot of its own, in their order."""
        if not isinstance(items, list) or len(items) > MAX_BATCH:
            raise invalid_arguments(f"A batch is a list of at most {MAX_BATCH:,} requests.")
        slots: dict[int, BatchSlot] = {}
        remaining = iter(enumerate(items))
        answer_chars = 0

        async def answer_remaining() -> None:
            nonlocal answer_chars
            for number, item in remaining:
                try:
                    response = await self._answer_item(item, account)
                    answer_chars += response.text_chars
                    if answer_chars > MAX_BATCH_ANSWER_CHARS:
                        raise CallFailed("llm_too_long", BATCH_ANSWERS_TOO_LONG)
                    slots[number] = AnsweredSlot(ok=True, **response_data(response))
                except CallFailed as exc:
                    error = SlotError(kind=exc.kind, message=str(exc), data=exc.data)
                    slots[number] = FailedSlot(ok=False, error=error)

        concurrency = self._settings.run.concurrency
        if self._model.is_client_model or concurrency is None:
            concurrency = MAX_OPEN_REQUESTS
        async with anyio.create_task_group() as tasks:
            for _ in range(min(concurrency, len(items))):
                tasks.start_soon(answer_remaining)
                await checkpoint()  # others have their turn while so many requests begin
        return [slots[number] for number in range(len(items))]


def digest_request(request: ModelRequest) -> str:
    """Return a digest that equal requests share."""
    texts = (request.prompt, request.data)
    digests = [sha256(each.encode("utf-8", "surrogatepass")).hexdigest() for each in texts]
    rest = canonical_json([*digests, request.schema, request.model, request.max_tokens])
    return sha256(rest.encode()).hexdigest()


def response_data(response: ModelResponse) -> ResponseData:
    """Return an answer as code receives it."""
    return {
        "value": response.value,
        "usage": response.usage.to_data(),
        "cached": response.is_cached,
    }


def select_backend(
    settings: LlmSettings, process: ModelBackend, max_caller_chars: int = MAX_MODEL_REQUEST_CHARS
) -> ModelBackend | None:
    """Return the backend that the settings name; None if there is none.

    A request for the broker `caller` has at most `max_caller_chars`: it is part of a result.
    """
    match settings.effective_broker:
        case "litellm":
            return process
        case "caller":
            return ClientModel(max_caller_chars)
        case "sampling":
            return ClientModel(MAX_MODEL_REQUEST_CHARS)
        case _:
            return None
