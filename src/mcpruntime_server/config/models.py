"""What can be set: one frozen model for each table of the settings file.

These are the defaults too; `server.toml` in the repository lists them all with their reasons.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    model_validator,
)

PositiveInt = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PublicKey = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Verdict = Literal["allow", "ask", "deny"]
WILDCARD = re.compile(
    r"\[!?[^]\[.!]+\]|[*?]"
)  # what stands for any character, or any of some, in the name of a rule
SettingKey = tuple[str | int, ...]  # ("sandbox", "memory_mb"): a setting's place in the tree


def validate_rule_name(name: str) -> str:
    """Return the name of a rule as it is; raises `ValueError` if no server or tool can have it.

    A rule that never applies would leave allowed what it was to deny.
    """
    parts = WILDCARD.sub("_", name).split(".")
    if len(parts) > 2 or not all(part and f"_{part}".isidentifier() for part in parts):
        raise ValueError(
            'no tool has this name; write "server" or "server.tool" as code does, e.g. my_server for my-server; '
            "*, ? and [...] may stand for other characters"
        )
    as_in_code = unicodedata.normalize("NFKC", name)
    if as_in_code != name:
        raise ValueError(f"no tool has this name; in code it is {as_in_code!a}")
    return name


def reject_table(given: Any) -> Any:
    """Return the verdict of a rule as it was given; `server.tool = "ask"` is a table within a table in TOML."""
    if isinstance(given, Mapping):
        raise ValueError('the whole name of a rule must be in quotes: "server.tool" = "ask"')
    return given


RuleName = Annotated[str, AfterValidator(validate_rule_name)]
RuleVerdict = Annotated[Verdict, BeforeValidator(reject_table)]


class SettingsTable(BaseModel):
    """Base of every table: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerSettings(SettingsTable):
    """`[server]`: sessions, results, where data lives."""

    data_dir: Path = Path()  # the platform's own data folder unless given
    shims_dir: Path = Path()  # `tool_shims` beside the settings file, else in the data folder
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    wait_s: Seconds = 45.0
    wait_progress_s: Seconds = 280.0
    max_runs: PositiveInt = 32
    max_runs_per_principal: PositiveInt = 16
    max_sessions: PositiveInt = 32
    session_idle_s: Seconds = 900.0
    keep_days: Annotated[int, Field(ge=0)] = 90
    keep_mb: Annotated[int, Field(ge=0)] = 4096
    result_chars: PositiveInt = 20_000
    result_items: PositiveInt = 200
    context_roots: tuple[Path, ...] = ()  # folders below which `context` may name files


class SandboxSettings(SettingsTable):
    """`[sandbox]`: what code may use, and what it runs in."""

    backend: Literal["auto", "docker", "local"] = "auto"
    image: str = ""  # empty: the image that `image build` makes from the settings below
    base_image: str = "python:3.12-slim"
    packages: tuple[str, ...] = ("numpy", "pandas", "matplotlib")
    runtime: str = ""  # empty: the engine's default; e.g. "runsc"
    memory_mb: PositiveInt = 512
    cpus: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    pids: PositiveInt = 128
    tmp_mb: PositiveInt = 64
    workspace_mb: PositiveInt = 256
    output_mb: PositiveInt = 16
    timeout_s: Seconds = 120.0
    pool_size: Annotated[int, Field(ge=0)] = 1
    checkpoints: Annotated[int, Field(ge=0)] = 16
    checkpoint_mb: PositiveInt = 256
    mounts: tuple[str, ...] = ()  # "/host/folder:/sandbox/folder[:rw]", read-only unless it says rw


class PolicySettings(SettingsTable):
    """`[policy]`: which calls of the user's MCP servers code may make, and who is asked."""

    read: Verdict = "allow"
    write: Verdict = "allow"
    destructive: Verdict = "ask"
    approver: Literal["person", "model"] = "person"
    expires_s: Seconds = 86_400.0
    tools: Mapping[RuleName, RuleVerdict] = {}  # by patterns of "server" or "server.tool"


class SkillSettings(SettingsTable):
    """`[skills]`: where skills are kept, and which runs are kept by themselves."""

    auto: Literal["off", "draft", "active-on-second-success"] = "off"
    describe: Literal["ast", "model"] = "ast"
    trusted_keys: tuple[PublicKey, ...] = ()  # of who signs skills, as `skills sign` prints them
    folders: tuple[Path, ...] = ()  # of Agent Skills that others keep: read, never written
    folder: Path = Path()  # `skills_store` beside the settings file, else in the data folder


class BudgetLimits(SettingsTable):
    """What questions to models may cost: a budget; what is not given has no limit."""

    calls: Annotated[int, Field(ge=0)] | None = None
    tokens_in: Annotated[int, Field(ge=0)] | None = None
    tokens_out: Annotated[int, Field(ge=0)] | None = None
    usd: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    wall_s: Seconds | None = None
    depth: Annotated[int, Field(ge=0)] | None = None
    concurrency: PositiveInt | None = None

    def counted_limits(self) -> dict[str, float | None]:
        """Return the limits of what is counted, by the names of `Usage`."""
        return {
            "calls": self.calls,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "usd": self.usd,
        }


class RunBudgetLimits(BudgetLimits):
    """`[llm.run]`: the budget of each run."""

    calls: Annotated[int, Field(ge=0)] | None = 1_000
    depth: Annotated[int, Field(ge=0)] | None = 3
    concurrency: PositiveInt | None = 32


class SessionBudgetLimits(BudgetLimits):
    """`[llm.session]`: the budget of each session."""

    calls: Annotated[int, Field(ge=0)] | None = 10_000


class PrincipalBudgetLimits(BudgetLimits):
    """`[llm.principal]`: the budget of each principal, as long as a server lives."""

    calls: Annotated[int, Field(ge=0)] | None = 100_000
    concurrency: PositiveInt | None = 64


class LlmSettings(SettingsTable):
    """`[llm]`: which model answers the questions of code, and what they may cost."""

    broker: Literal["auto", "litellm", "caller", "sampling", "off"] = "auto"
    model: str = ""
    models: tuple[str, ...] = ()  # others that code may name
    api_base: str = ""
    api_key: SecretStr = SecretStr("")
    timeout_s: Seconds = 120.0
    max_tokens: PositiveInt = 4096
    retries: Annotated[int, Field(ge=0, le=20)] = 4
    run: RunBudgetLimits = RunBudgetLimits()
    session: SessionBudgetLimits = SessionBudgetLimits()
    principal: PrincipalBudgetLimits = PrincipalBudgetLimits()

    @property
    def effective_broker(self) -> Literal["litellm", "caller", "sampling", "nobody"]:
        """Who answers."""
        match self.broker:
            case "auto":
                return "litellm" if self.model else "nobody"
            case "off":
                return "nobody"
            case named:
                return named


class UpstreamSettings(SettingsTable):
    """One entry of `mcpServers`, in the form that the ecosystem's clients use."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # clients keep keys of their own here

    command: str | None = None
    args: tuple[str, ...] = Field(
        default=(), repr=False
    )  # like `url`, may hold what was interpolated
    env: Mapping[str, SecretStr] = {}
    cwd: Path | None = None
    url: str | None = Field(default=None, repr=False)
    headers: Mapping[str, SecretStr] = {}
    timeout_s: Seconds = 60.0
    max_concurrency: PositiveInt = 64
    disabled: bool = False

    @model_validator(mode="before")
    @classmethod
    def _known_transport(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "sse" in (given.get("type"), given.get("transport")):
            raise ValueError(
                "the SSE transport was removed from MCP; use the server's streamable HTTP `url`"
            )
        return given

    @model_validator(mode="after")
    def _one_transport(self) -> UpstreamSettings:
        if (self.command is None) == (self.url is None):
            raise ValueError(
                "give either `command` (a stdio server) or `url` (a streamable HTTP server)"
            )
        if self.command == "" or (
            self.url is not None and not self.url.startswith(("http://", "https://"))
        ):
            raise ValueError(
                "a `command` is not empty, and a `url` begins with http:// or https://"
            )
        return self


def validate_provider_name(name: str) -> str:
    """Return the name of a provider as it is; raises `ValueError` if it cannot be part of an address."""
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,39}", name):
        raise ValueError(
            "a provider's name has lower-case letters, digits, _ and -, begins with a letter and has at most 40 of them"
        )
    return name


def validate_path_pattern(text: str) -> str:
    """Return a pattern of paths as it is; raises `ValueError` if no path in a folder can match it."""
    if not text.strip("/") or text.startswith(("/", "~")) or ".." in text.split("/"):
        raise ValueError(
            'a pattern is a path within the folder, in which *, ** and ? stand for others: "drafts/**"'
        )
    return text


ProviderName = Annotated[str, AfterValidator(validate_provider_name)]
PathPattern = Annotated[str, AfterValidator(validate_path_pattern)]


class KnowledgeSettings(SettingsTable):
    """One entry of `knowledge`: texts that code can search, and where it comes from."""

    path: Path | None = None  # a folder of documents
    include: tuple[PathPattern, ...] = ()  # of the folder; empty: what is known to be text
    exclude: tuple[PathPattern, ...] = ()
    sqlite: Path | None = None  # a database, whose schema it is
    samples: Annotated[int, Field(ge=0, le=100)] = 0  # rows of a table that code may ask for
    server: str | None = None  # an entry of `mcpServers`, whose resources it is
    python: Path | None = None  # a file with a class `Provider`
    timeout_s: Seconds = 30.0  # that an answer of the class may take
    title: str = ""

    @model_validator(mode="after")
    def _one_kind(self) -> KnowledgeSettings:
        if (
            sum(each is not None for each in (self.path, self.sqlite, self.server, self.python))
            != 1
        ):
            raise ValueError(
                "give one of `path` (a folder), `sqlite` (a database), `server` (resources) or `python`"
            )
        if self.path is None and (self.include or self.exclude):
            raise ValueError("`include` and `exclude` are about a folder: they go with `path`")
        if self.sqlite is None and self.samples:
            raise ValueError("`samples` is about rows of a database: it goes with `sqlite`")
        return self


class Config(SettingsTable):
    """All settings of one server; made by `load`, it also knows where each came from."""

    server: ServerSettings = ServerSettings()
    sandbox: SandboxSettings = SandboxSettings()
    policy: PolicySettings = PolicySettings()
    skills: SkillSettings = SkillSettings()
    llm: LlmSettings = LlmSettings()
    mcpServers: Mapping[str, UpstreamSettings] = {}  # noqa: N815 - the ecosystem's own name
    knowledge: Mapping[ProviderName, KnowledgeSettings] = {}

    _settings_file: Path | None = PrivateAttr(default=None)
    _origins: Mapping[SettingKey, str] = PrivateAttr(default={})  # of what is not a default
    _servers_as_written: Mapping[str, Mapping[str, Any]] = PrivateAttr(default={})

    @property
    def settings_file(self) -> Path | None:
        """The settings file that was read, if any."""
        return self._settings_file

    @property
    def origins(self) -> Mapping[SettingKey, str]:
        """Where each setting that is not a default was given."""
        return self._origins

    @property
    def servers_as_written(self) -> Mapping[str, Mapping[str, Any]]:
        """The entries of `mcpServers` before their variables were filled in."""
        return self._servers_as_written

    def with_sources(
        self,
        file: Path | None,
        origins: Mapping[SettingKey, str],
        as_given: Mapping[str, Mapping[str, Any]],
    ) -> Config:
        """Return these settings with the knowledge of where they came from."""
        made = self.model_copy()
        made._settings_file, made._origins, made._servers_as_written = file, origins, as_given
        return made


SETTINGS_TABLES: Mapping[str, type[SettingsTable]] = {
    "server": ServerSettings,
    "sandbox": SandboxSettings,
    "policy": PolicySettings,
    "skills": SkillSettings,
    "llm": LlmSettings,
}
