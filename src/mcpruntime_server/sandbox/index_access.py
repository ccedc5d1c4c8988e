"""How this host reaches its package index: pip's settings and certificates, for a build.

Only what another machine can use is taken: addresses of index servers, not folders or files of this
one. The result may contain credentials, so it goes into the build's own volume and never into an
image, a label, a log or an error.
"""

from __future__ import annotations

import configparser
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

URL_SETTINGS = ("index-url", "extra-index-url", "find-links")
WORD_SETTINGS = (
    "trusted-host",
    "timeout",
    "retries",
    "proxy",
    "pre",
    "prefer-binary",
    "only-binary",
)
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
CA_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # macOS, BSD
)
PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")


def read_pip_settings(environ: Mapping[str, str], home: Path) -> dict[str, str]:
    """Return pip's settings: later files override earlier ones, and the environment all."""
    found: dict[str, str] = {}
    for file in list_pip_files(environ, home):
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue  # pip would refuse it; a build without it may succeed
        for section in ("global", "install"):
            if parser.has_section(section):
                found.update(parser.items(section))
    for name in (*URL_SETTINGS, *WORD_SETTINGS, "cert"):
        if value := environ.get("PIP_" + name.upper().replace("-", "_")):
            found[name] = value
    return found


def list_pip_files(environ: Mapping[str, str], home: Path) -> Iterator[Path]:
    """Yield the paths of pip's configuration files, in the order in which pip reads them."""
    chosen = environ.get("PIP_CONFIG_FILE")
    if chosen != "/dev/null":
        for folder in environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":"):
            yield Path(folder, "pip", "pip.conf")
        yield Path("/etc/pip.conf")
        yield home / ".pip" / "pip.conf"
        yield Path(environ.get("XDG_CONFIG_HOME") or home / ".config", "pip", "pip.conf")
        yield Path(sys.prefix, "pip.conf")
    if chosen:
        yield Path(chosen)


def format_pip_conf(settings: Mapping[str, str], cert: str) -> str:
    """Return a pip.conf with what another machine can use; `cert` is a path there, or ""."""
    kept = {name: settings.get(name, "").split() for name in (*URL_SETTINGS, *WORD_SETTINGS)}
    for name in URL_SETTINGS:
        kept[name] = [url for url in kept[name] if re.match(r"https?://", url)]
    lines = ["[global]"]
    for name, values in kept.items():
        if values:
            lines.append(f"{name} = " + "\n    ".join(values))
    if cert:
        lines.append(f"cert = {cert}")
    return "\n".join(lines) + "\n"


def read_ca_bundle(environ: Mapping[str, str], settings: Mapping[str, str]) -> bytes:
    """Return the certificates that this host trusts, as PEM; b"" if it has no bundle."""
    named = [settings.get("cert", ""), *(environ.get(name, "") for name in CA_VARIABLES), *CA_FILES]
    for name in filter(None, named):
        file = Path(name)
        if file.is_file():
            return file.read_bytes()
    return b""


def find_proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that name this host's proxies."""
    found = {name: value for name, value in environ.items() if name.lower() in PROXY_VARIABLES}
    return {name: value for name, value in found.items() if value}


def mask_credentials(text: str) -> str:
    """Return `text` with the user and password in each URL replaced by `***`."""
    return re.sub(r"(?<=://)[^/@\s]+@", "***@", text)
