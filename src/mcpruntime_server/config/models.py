"""The settings: one frozen dataclass for each table of the settings file, with the defaults.

`server.toml` in the repository lists every setting with its default and a reason.
The command line imports this module for every verb, so it stays cheap: the standard library only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from .diagnostics import SettingKey
from .placeholders import (
    DEFAULT_NAME,
    PER_PRINCIPAL,
    fill_text,
    fill_url,
    find_placeholder_names,
    is_in_host,
)
from .scopes import Scope
from .validation import INTERNAL, Bounds, Check, SecretText, SettingsTable
from .web_rules import MAX_PORT, parse_host, parse_rule

PositiveInt = Annotated[int, Bounds(above=0)]
Count = Annotated[int, Bounds(at_least=0)]
Amount = Annotated[float, Bounds(at_least=0)]
PositiveFloat = Annotated[float, Bounds(above=0)]
Seconds = PositiveFloat
Verdict = Literal["allow", "ask", "deny"]
WILDCARD = re.compile(r"\[!?[^]\[.!]+\]|[*?]")  # matches any character, or one of a set, in a rule


def check_rule_name(name: str) -> None:
    """Raise `ValueError` if no server or tool can have the name of a rule.

    A rule that never applies would silently allow what it was meant to deny.
    """
    parts = WILDCARD.sub("_", name).split(".")
    if len(parts) > 2 or not all(part and f"_{part}".isidentifier() for part in parts):
        raise ValueError(
            'no tool has this name; write "server" or "server.tool" as code does, '
            "e.g. my_server for my-server; *, ? and [...] may stand for other characters"
        )
    as_in_code = unicodedata.normalize("NFKC", name)
    if as_in_code != name:
        raise ValueError(f"no tool has this name; in code it is {as_in_code!a}")


def check_rule_verdict(value: Any) -> None:
    """Raise `ValueError` for a table: TOML reads `server.tool = "ask"` as a table in a table."""
    if isinstance(value, Mapping):
        raise ValueError('the whole name of a rule must be in quotes: "server.tool" = "ask"')


def check_provider_name(name: str) -> None:
    """Raise `ValueError` if the name of a provider cannot be part of an address."""
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,39}", name):
        raise ValueError(
            "a provider's name begins with a lower-case letter and has at most 40 lower-case "
            "letters, digits, _ and -"
        )


def check_path_pattern(text: str) -> None:
    """Raise `ValueError` if no path inside a folder can match a pattern."""
    if not text.strip("/") or text.startswith(("/", "~")) or ".." in text.split("/"):
        raise ValueError(
            'a pattern is a path within the folder, in which *, ** and ? match others: "drafts/**"'
        )


def check_public_key(text: str) -> None:
    """Raise `ValueError` unless `text` is an Ed25519 public key in hexadecimal digits."""
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("a public key has 64 hexadecimal digits, as `skills sign` prints it")


def is_secure_url(text: str) -> bool:
    """Return whether an address uses TLS, or does not leave this machine."""
    if not re.fullmatch(r"[!#-&(-;=?-\[\]-~]+", text):  # printable ASCII without quotes
        return False
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    is_local = parts.hostname in ("127.0.0.1", "::1", "localhost")
    return (
        bool(parts.hostname)
        and "@" not in parts.netloc
        and (parts.scheme == "https" or (parts.scheme == "http" and is_local))
    )


def check_method(text: str) -> None:
    """Raise `ValueError` unless `text` is an HTTP method."""
    if not re.fullmatch("[A-Z]{1,20}", text):
        raise ValueError("write an HTTP method in upper case")


def check_header_name(text: str) -> None:
    """Raise `ValueError` unless a credential may be sent in a header of this name."""
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]{0,99}", text):
        raise ValueError("write the name of an HTTP header, such as Authorization")


def check_host(text: str) -> None:
    """Raise `ValueError` unless `text` is a host, or host:port, as addresses have it."""
    host, colon, port = text.rpartition(":") if re.search(r":\d+$", text) else (text, "", "")
    if parse_host(host) != host.strip("[]") or (colon and not 0 < int(port) <= MAX_PORT):
        raise ValueError("write a host in lower case, with a port if it is not 443")


def check_network(text: str) -> None:
    """Raise `ValueError` unless `text` is an IP address or a network of them."""
    try:
        ip_network(text)
    except ValueError as exc:
        raise ValueError(f"write an IP address or a network, e.g. 10.1.0.0/16: {exc}") from None


RuleName = Annotated[str, Check(check_rule_name)]
RuleVerdict = Annotated[Verdict, Check(check_rule_verdict)]
ProviderName = Annotated[str, Check(check_provider_name)]
PathPattern = Annotated[str, Check(check_path_pattern)]
PublicKey = Annotated[str, Check(check_public_key)]
WebRuleText = Annotated[str, Check(parse_rule)]
HostName = Annotated[str, Check(check_host)]
Network = Annotated[str, Check(check_network)]
HttpMethod = Annotated[str, Check(check_method)]
HeaderName = Annotated[str, Check(check_header_name)]
SignatureAlgorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]  # asymmetric ones: with a shared secret, a public key could be mistaken for one


@dataclass(frozen=True, kw_only=True)
class ServerSettings(SettingsTable):
    """`[server]`: sessions, results, where data lives."""

    data_dir: Path = Path()  # empty: the platform's own data folder
    shims_dir: Path = (
        Path()
    )  # empty: `tool_shims` beside the settings file, else in the data folder
    export_dir: Path = Path()  # empty: `exports` in the data folder; files that code exports
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    wait_s: Seconds = 45.0
    wait_progress_s: Seconds = 280.0
    max_runs: PositiveInt = 32
    max_runs_per_principal: PositiveInt = 16
    max_sessions: PositiveInt = 32
    max_sessions_per_principal: PositiveInt = 24
    session_idle_s: Seconds = 900.0
    keep_days: Count = 90
    keep_mb: Count = 4096
    result_chars: PositiveInt = 20_000
    result_items: PositiveInt = 200
    context_roots: tuple[Path, ...] = ()  # `context` of run_code may name files below these

    @property
    def packages_dir(self) -> Path:
        """The folder of the packages that code has asked for."""
        return self.data_dir / "packages" / "wheels"


@dataclass(frozen=True, kw_only=True)
class JournalSettings(SettingsTable):
    """`[journal]`: how durable results are, and how much runs and sessions may record."""

    durability: Literal["process", "disk"] = "process"
    run_mb: PositiveInt = 128
    session_mb: PositiveInt = 1024
    principal_mb: Count = 2048  # 0: no limit; the local user has none


@dataclass(frozen=True, kw_only=True)
class SandboxSettings(SettingsTable):
    """`[sandbox]`: the environment that code runs in, and its limits."""

    backend: Literal["auto", "docker", "local"] = "auto"
    image: str = ""  # empty: the image that `image build` makes from the next two settings
    base_image: str = "python:3.12-slim"
    packages: tuple[str, ...] = ("numpy", "pandas", "matplotlib")
    packages_on_demand: Literal["off", "ask", "allow"] = "ask"  # whether code may ask for others
    allowed_packages: tuple[str, ...] = ("*",)  # names or patterns of those
    package_mb: PositiveInt = 1024  # of one of those, unpacked
    package_tool: Literal["auto", "uv", "pip"] = "auto"  # what finds them on this machine
    runtime: str = ""  # empty: the engine's default; e.g. "runsc"
    memory_mb: PositiveInt = 512
    cpus: PositiveFloat = 1.0
    pids: PositiveInt = 128
    tmp_mb: PositiveInt = 64
    workspace_mb: PositiveInt = 256
    output_mb: PositiveInt = 16
    timeout_s: Seconds = 120.0
    max_timeout_s: Seconds = 3600.0  # also where a recorded run is executed again
    pool_size: Count = 1
    checkpoints: Count = 16
    checkpoint_mb: PositiveInt = 256
    mounts: tuple[str, ...] = ()  # "/host/folder:/sandbox/folder[:rw]"; read-only without rw

    def __post_init__(self) -> None:
        """Raise `ValueError` if the usual limit of a run exceeds the greatest one."""
        if self.timeout_s > self.max_timeout_s:
            raise ValueError(
                f"`timeout_s` ({self.timeout_s:g}) exceeds `max_timeout_s` "
                f"({self.max_timeout_s:g}): raise that, too"
            )


@dataclass(frozen=True, kw_only=True)
class WebCredential(SettingsTable):
    """One entry of `network.credentials`: the header that requests to a host get."""

    header: HeaderName = "Authorization"
    value: SecretText = field(repr=False)
    credentials: Literal["shared", "per-principal"] = "shared"

    def __post_init__(self) -> None:
        """Raise `ValueError` if the value cannot be that of a header, or has no place for one."""
        value = self.value.get_secret_value()
        names = find_placeholder_names(value)
        if self.is_per_principal and names != [DEFAULT_NAME]:
            raise ValueError(
                f'`credentials = "{PER_PRINCIPAL}"` needs `${{credential}}` once in `value`'
            )
        text = fill_text(value, dict.fromkeys(names, "x"))
        if not text.isascii() or not text.isprintable() or not text.strip():
            raise ValueError("`value` must be printable ASCII text and not empty")

    @property
    def is_per_principal(self) -> bool:
        """Whether each principal has its own credential."""
        return self.credentials == PER_PRINCIPAL

    def fill_placeholder(self, secret: str) -> WebCredential:
        """Return the entry with the credential of a principal."""
        text = fill_text(self.value.get_secret_value(), {DEFAULT_NAME: secret})
        return replace(self, value=SecretText(text), credentials="shared")


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(SettingsTable):
    """`[network]`: which web requests code may make; by default, none."""

    allow: tuple[WebRuleText, ...] = ()
    ask: tuple[WebRuleText, ...] = ()  # a person approves each; they count before `allow`
    reads: tuple[HttpMethod, ...] = ("GET", "HEAD", "OPTIONS")  # methods that change nothing
    private: tuple[Network, ...] = ()  # addresses outside the internet that names may have
    ca_file: Path = Path()  # empty: the authorities that Python knows
    timeout_s: Seconds = 60.0  # to connect, and between two pieces of an answer
    response_mb: PositiveInt = 1024
    download_mb: PositiveInt = 1024  # of the answers to one run
    requests_per_minute: PositiveInt = 600  # of one session
    credentials: Mapping[HostName, WebCredential] = field(default_factory=dict)  # by host

    @property
    def rules(self) -> tuple[str, ...]:
        """All rules; without any, code may make no web request."""
        return (*self.ask, *self.allow)


@dataclass(frozen=True, kw_only=True)
class OAuthSettings(SettingsTable):
    """`[http.oauth]`: an identity provider whose access tokens are accepted, too."""

    issuer: str = ""  # empty: none
    resource: str = ""  # the address of /mcp that clients use; tokens are issued for it
    audience: str = ""  # what `aud` of a token has; empty: `resource`
    jwks_url: str = ""  # empty: the issuer's metadata says it
    algorithms: tuple[SignatureAlgorithm, ...] = ("RS256", "PS256", "ES256", "EdDSA")
    scopes: Mapping[Scope, str] = field(default_factory=dict)  # what the provider calls them

    def __post_init__(self) -> None:
        """Raise `ValueError` if tokens could not be verified, or not safely."""
        if not self.issuer:
            if self.non_default_values():
                raise ValueError("the other settings need `issuer`, the identity provider")
            return
        if not self.resource:
            raise ValueError(
                "`issuer` needs `resource`, the address of /mcp that clients use: without it, "
                "tokens that are meant for other services would be accepted"
            )
        for name in ("issuer", "resource", "jwks_url"):
            value = getattr(self, name)
            if value and (not is_secure_url(value) or "#" in value):
                raise ValueError(
                    f"`{name}` must begin with https:// (http:// on this machine alone) "
                    "and contain no #, spaces or quotes"
                )
        if "?" in self.issuer:
            raise ValueError("`issuer` must have no query")
        if not self.algorithms:
            raise ValueError("`algorithms` must name one at least")
        if any(not name or name.split() != [name] for name in self.scopes.values()):
            raise ValueError("the names in `scopes` must be words without spaces")

    def scope_name(self, scope: Scope) -> str:
        """Return what the provider calls a scope."""
        return self.scopes.get(scope, scope)


@dataclass(frozen=True, kw_only=True)
class HttpSettings(SettingsTable):
    """`[http]`: where `serve` listens, and how clients and web pages may address it."""

    host: str = "127.0.0.1"
    port: Annotated[int, Bounds(at_least=0, at_most=65_535)] = 8321
    allowed_hosts: tuple[str, ...] = ()  # "name" or "name:port"; loopback names always may
    allowed_origins: tuple[str, ...] = ()  # of web pages, "https://name"
    metrics_token: SecretText = field(default=SecretText(""), repr=False)
    proxies: tuple[str, ...] = ()  # addresses of proxies, which say where a request comes from
    requests_per_minute: Count = 3_000  # of one principal; 0 means no limit, as for the next three
    concurrent_requests: Count = 400  # of one principal, streams included
    runs_per_minute: Count = 600  # started by one principal
    failures_per_minute: Count = 60  # invalid tokens from one address
    oauth: OAuthSettings = OAuthSettings()


@dataclass(frozen=True, kw_only=True)
class CredentialSettings(SettingsTable):
    """`[credentials]`: those of principals, and their own connections to MCP servers."""

    key_file: Path = Path()  # empty: the variable MCPRUNTIME_CREDENTIALS_KEY has the keys
    idle_s: Seconds = 600.0
    max_connections: PositiveInt = 64
    keys: SecretText = field(  # the value of that variable
        default=SecretText(""), repr=False, metadata={INTERNAL: True}
    )


@dataclass(frozen=True, kw_only=True)
class TelemetrySettings(SettingsTable):
    """`[telemetry]`: where traces are sent."""

    traces_url: str = field(default="", repr=False)  # may hold credentials


@dataclass(frozen=True, kw_only=True)
class PolicySettings(SettingsTable):
    """`[policy]`: which calls of the user's MCP servers code may make, and who approves."""

    read: Verdict = "allow"
    write: Verdict = "allow"
    destructive: Verdict = "ask"
    approver: Literal["person", "model"] = "person"
    expires_s: Seconds = 86_400.0
    reads: tuple[RuleName, ...] = ()  # tools that only read, by name or pattern
    tools: Mapping[RuleName, RuleVerdict] = field(default_factory=dict)  # by name or pattern


@dataclass(frozen=True, kw_only=True)
class SkillSettings(SettingsTable):
    """`[skills]`: where skills are kept, and which runs become skills automatically."""

    auto: Literal["off", "draft", "active-on-second-success"] = "off"
    describe: Literal["ast", "model"] = "ast"
    trusted_keys: tuple[PublicKey, ...] = ()  # of people who sign skills
    folders: tuple[Path, ...] = ()  # of Agent Skills that others maintain: read, never written
    folder: Path = Path()  # empty: `skills_store` beside the settings file, else in the data folder


@dataclass(frozen=True, kw_only=True)
class BudgetLimits(SettingsTable):
    """A budget for model requests; None means no limit."""

    calls: Count | None = None
    tokens_in: Count | None = None
    tokens_out: Count | None = None
    usd: Amount | None = None
    wall_s: Seconds | None = None
    depth: Count | None = None
    concurrency: PositiveInt | None = None

    def counted_limits(self) -> dict[str, float | None]:
        """Return the limits of what is counted, by the field names of `Usage`."""
        return {
            "calls": self.calls,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "usd": self.usd,
        }


@dataclass(frozen=True, kw_only=True)
class RunBudgetLimits(BudgetLimits):
    """`[llm.run]`: the budget of each run."""

    calls: Count | None = 1_000
    depth: Count | None = 3
    concurrency: PositiveInt | None = 32


@dataclass(frozen=True, kw_only=True)
class SessionBudgetLimits(BudgetLimits):
    """`[llm.session]`: the budget of each session."""

    calls: Count | None = 10_000


@dataclass(frozen=True, kw_only=True)
class PrincipalBudgetLimits(BudgetLimits):
    """`[llm.principal]`: the budget of each principal while a server runs."""

    calls: Count | None = 100_000
    concurrency: PositiveInt | None = 64


@dataclass(frozen=True, kw_only=True)
class LlmSettings(SettingsTable):
    """`[llm]`: which model answers the requests of code, and their budgets."""

    broker: Literal["auto", "litellm", "caller", "sampling", "off"] = "auto"
    model: str = ""
    models: tuple[str, ...] = ()  # other models that code may name
    api_base: str = field(default="", repr=False)  # may hold credentials
    api_key: SecretText = field(default=SecretText(""), repr=False)
    timeout_s: Seconds = 120.0
    max_tokens: PositiveInt = 4096
    retries: Annotated[int, Bounds(at_least=0, at_most=20)] = 4
    run: RunBudgetLimits = RunBudgetLimits()
    session: SessionBudgetLimits = SessionBudgetLimits()
    principal: PrincipalBudgetLimits = PrincipalBudgetLimits()

    @property
    def effective_broker(self) -> Literal["litellm", "caller", "sampling", "off"]:
        """The broker that answers, with "auto" resolved."""
        if self.broker == "auto":
            return "litellm" if self.model else "caller"
        return self.broker


@dataclass(frozen=True, kw_only=True)
class UpstreamSettings(SettingsTable):
    """One entry of `mcpServers`, in the form that MCP clients use."""

    ignores_unknown_keys: ClassVar[bool] = True  # clients keep keys of their own here

    command: str | None = None
    args: tuple[str, ...] = field(default=(), repr=False)  # these four may hold credentials
    env: Mapping[str, SecretText] = field(default_factory=dict, repr=False)
    cwd: Path | None = None
    url: str | None = field(default=None, repr=False)
    headers: Mapping[str, SecretText] = field(default_factory=dict, repr=False)
    timeout_s: Seconds = 60.0
    max_concurrency: PositiveInt = 64
    max_schema_parts: PositiveInt = 20_000  # of one schema of a tool; all have 20 times as many
    answer_mb: PositiveInt = 8
    answer_items: PositiveInt = 250_000
    max_tools: Annotated[int, Bounds(above=0, at_most=10_000)] = 2_000
    max_pages: PositiveInt = 200
    tools_mb: PositiveInt = 2
    max_resources: Annotated[int, Bounds(above=0, at_most=100_000)] = 10_000
    resources_mb: PositiveInt = 8
    messages_per_s: PositiveInt = 200
    credentials: Literal["shared", "per-principal"] = "shared"
    disabled: bool = False

    def __post_init__(self) -> None:
        """Raise `ValueError` unless there is exactly one usable transport."""
        if (self.command is None) == (self.url is None):
            raise ValueError(
                "give either `command` (a stdio server) or `url` (a streamable HTTP server)"
            )
        is_http = self.url is None or self.url.startswith(("http://", "https://"))
        if self.command == "" or not is_http:
            raise ValueError(
                "a `command` is not empty, and a `url` begins with http:// or https://"
            )
        if self.is_per_principal and not self.disabled:
            self._check_placeholders()

    def _check_placeholders(self) -> None:
        """Raise `ValueError` unless credentials have their places, none of them in the host."""
        if not self.find_placeholders():
            raise ValueError(
                f'`credentials = "{PER_PRINCIPAL}"` needs a place for the credential: write '
                "`${credential}` in `env`, `headers`, `args` or `url`"
            )
        if is_in_host(self.url or ""):
            raise ValueError("a credential cannot be a part of the host in `url`")

    @property
    def is_per_principal(self) -> bool:
        """Whether each principal has a connection of its own, with its own credentials."""
        return self.credentials == PER_PRINCIPAL

    def find_placeholders(self) -> dict[str, set[str]]:
        """Return the names of the credentials that it needs, each with the fields it is in."""
        texts = [("args", argument) for argument in self.args]
        for name, table in (("env", self.env), ("headers", self.headers)):
            texts += [(name, value.get_secret_value()) for value in table.values()]
        found: dict[str, set[str]] = {}
        for name, text in (*texts, ("url", self.url or "")):
            for credential in find_placeholder_names(text):
                found.setdefault(credential, set()).add(name)
        return found

    def fill_placeholders(self, secrets: Mapping[str, str]) -> UpstreamSettings:
        """Return the settings with the credentials of one principal, by name."""

        def fill(table: Mapping[str, SecretText]) -> dict[str, SecretText]:
            return {
                name: SecretText(fill_text(value.get_secret_value(), secrets))
                for name, value in table.items()
            }

        return replace(
            self,
            credentials="shared",
            args=tuple(fill_text(argument, secrets) for argument in self.args),
            env=fill(self.env),
            url=None if self.url is None else fill_url(self.url, secrets),
            headers=fill(self.headers),
        )

    @classmethod
    def check_table(cls, values: Mapping[str, Any]) -> None:
        """Raise `ValueError` for a transport that MCP has removed."""
        if "sse" in (values.get("type"), values.get("transport")):
            raise ValueError(
                "the SSE transport was removed from MCP; use the server's streamable HTTP `url`"
            )


@dataclass(frozen=True, kw_only=True)
class KnowledgeSettings(SettingsTable):
    """One entry of `knowledge`: a provider of documents or schemas that code can search."""

    path: Path | None = None  # a folder of documents
    include: tuple[PathPattern, ...] = ()  # of the folder; empty: files known to be text
    exclude: tuple[PathPattern, ...] = ()
    sqlite: Path | None = None  # a database; its schema is served
    samples: Annotated[int, Bounds(at_least=0, at_most=100)] = 0  # rows of a table code may read
    server: str | None = None  # an entry of `mcpServers`; its resources are served
    python: Path | None = None  # a file with a class `Provider`
    timeout_s: Seconds = 30.0  # for one answer of that class
    title: str = ""

    def __post_init__(self) -> None:
        """Raise `ValueError` unless there is one source, with its own options only."""
        sources = (self.path, self.sqlite, self.server, self.python)
        if sum(source is not None for source in sources) != 1:
            raise ValueError(
                "give one of `path` (a folder), `sqlite` (a database), `server` (resources) "
                "or `python`"
            )
        if self.path is None and (self.include or self.exclude):
            raise ValueError("`include` and `exclude` select files of a folder: they need `path`")
        if self.sqlite is None and self.samples:
            raise ValueError("`samples` counts rows of a database: it needs `sqlite`")


@dataclass(frozen=True)
class SettingSources:
    """Where the settings came from; `origins` has every setting that is not a default."""

    file: Path | None = None  # the settings file, if one was read
    origins: Mapping[SettingKey, str] = field(default_factory=dict)
    servers_as_written: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # with ${...}


@dataclass(frozen=True, kw_only=True)
class Config(SettingsTable):
    """All settings of one server; `load_config` makes it."""

    server: ServerSettings = ServerSettings()
    journal: JournalSettings = JournalSettings()
    sandbox: SandboxSettings = SandboxSettings()
    network: NetworkSettings = NetworkSettings()
    http: HttpSettings = HttpSettings()
    credentials: CredentialSettings = CredentialSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    policy: PolicySettings = PolicySettings()
    skills: SkillSettings = SkillSettings()
    llm: LlmSettings = LlmSettings()
    # The name that MCP clients use.
    mcpServers: Mapping[str, UpstreamSettings] = field(default_factory=dict)  # noqa: N815
    knowledge: Mapping[ProviderName, KnowledgeSettings] = field(default_factory=dict)
    sources: SettingSources = field(
        default=SettingSources(), compare=False, repr=False, metadata={INTERNAL: True}
    )


SETTINGS_TABLES: Mapping[str, type[SettingsTable]] = {
    "server": ServerSettings,
    "journal": JournalSettings,
    "sandbox": SandboxSettings,
    "network": NetworkSettings,
    "http": HttpSettings,
    "credentials": CredentialSettings,
    "telemetry": TelemetrySettings,
    "policy": PolicySettings,
    "skills": SkillSettings,
    "llm": LlmSettings,
}
