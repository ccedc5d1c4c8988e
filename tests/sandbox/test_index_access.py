"""What a build learns of the host's package index, and what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcpruntime_server.sandbox.index_access import (
    find_proxies,
    format_pip_conf,
    mask_credentials,
    read_ca_bundle,
    read_pip_settings,
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / ".config" / "pip"
    folder.mkdir(parents=True)
    (folder / "pip.conf").write_text(
        "[global]\nindex-url = https://global.example/simple\ntimeout = 7\n"
        "[install]\nindex-url = https://install.example/simple\n"
    )
    return tmp_path


def test_the_environment_overrides_files_and_a_command_section_the_global_one(
    home: Path,
) -> None:
    assert read_pip_settings({}, home)["index-url"] == "https://install.example/simple"
    environ = {"PIP_INDEX_URL": "https://environment.example/simple"}
    assert read_pip_settings(environ, home)["index-url"] == "https://environment.example/simple"
    assert read_pip_settings(environ, home)["timeout"] == "7"


def test_a_chosen_file_is_read_last_and_dev_null_means_none(home: Path) -> None:
    chosen = home / "chosen.conf"
    chosen.write_text("[global]\ntimeout = 9\n")
    assert read_pip_settings({"PIP_CONFIG_FILE": str(chosen)}, home)["timeout"] == "9"
    assert read_pip_settings({"PIP_CONFIG_FILE": "/dev/null"}, home) == {}


def test_a_broken_file_is_skipped(home: Path) -> None:
    (home / ".config" / "pip" / "pip.conf").write_text("no section\n")
    assert "timeout" not in read_pip_settings({"XDG_CONFIG_DIRS": ""}, home)


def test_folders_and_files_of_this_host_are_left_out() -> None:
    settings = {
        "index-url": "https://index.example/simple",
        "extra-index-url": "file:///srv/simple https://a.example/simple\nhttps://b.example/simple",
        "find-links": "/opt/wheels",
        "trusted-host": "a.example",
        "unknown": "x",
    }
    assert format_pip_conf(settings, "/tmp/build/ca.pem").splitlines() == [
        "[global]",
        "index-url = https://index.example/simple",
        "extra-index-url = https://a.example/simple",
        "    https://b.example/simple",
        "trusted-host = a.example",
        "cert = /tmp/build/ca.pem",
    ]


def test_the_certificates_are_the_first_that_exist_pip_s_own_before_all(tmp_path: Path) -> None:
    for name in ("pip", "requests", "ssl"):
        (tmp_path / name).write_text(name)
    environ = {"SSL_CERT_FILE": f"{tmp_path}/ssl", "REQUESTS_CA_BUNDLE": f"{tmp_path}/requests"}
    assert read_ca_bundle(environ, {"cert": f"{tmp_path}/pip"}) == b"pip"
    assert read_ca_bundle(environ, {"cert": f"{tmp_path}/missing"}) == b"requests"
    assert read_ca_bundle({"SSL_CERT_FILE": f"{tmp_path}/ssl"}, {}) == b"ssl"


def test_proxies_are_passed_on_in_both_spellings() -> None:
    environ = {
        "HTTPS_PROXY": "http://p:1",
        "no_proxy": "localhost",
        "http_proxy": "",
        "PATH": "/bin",
    }
    assert find_proxies(environ) == {"HTTPS_PROXY": "http://p:1", "no_proxy": "localhost"}


def test_credentials_in_addresses_are_masked() -> None:
    text = "Looking in https://user:pa-ss@index.example/simple and http://token@b.example"
    assert (
        mask_credentials(text)
        == "Looking in https://***@index.example/simple and http://***@b.example"
    )
