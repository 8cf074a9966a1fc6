"""The text of nginx.conf, and that NGINX takes it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logweir.core import bounds
from logweir.gateway import config
from logweir.standalone import binaries, servers

GOLDEN = Path(__file__).parent / "golden" / "nginx.conf"

FIXED = config.Gateway(
    port=7080,
    ingest=("127.0.0.1:9001", "127.0.0.1:9002"),
    query=("127.0.0.1:9003",),
    auth=("127.0.0.1:9004",),
    folder=Path("/var/lib/logweir/gateway"),
    run_as=("logweir", "logweir"),
)


def complaints(gateway: config.Gateway) -> str:
    """Return what `nginx -t` complains about; empty when it takes the configuration."""
    program = binaries.nginx()
    assert program is not None
    path = gateway.folder / "nginx.conf"
    path.write_text(config.render(gateway))
    ran = subprocess.run(
        [program.program, "-e", "stderr", "-t", "-q", "-c", path, "-p", gateway.folder],
        capture_output=True,
        text=True,
    )
    return ran.stderr if ran.returncode or ran.stderr else ""


def test_the_text_is_what_was_agreed_on():
    """After a wished change, write `config.render(FIXED)` to the golden file, and read the diff."""
    assert config.render(FIXED) == GOLDEN.read_text()


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="as it is"),
        pytest.param({"host": "0.0.0.0"}, id="on all addresses"),
        pytest.param({"host": "::1"}, id="on an IPv6 address"),
        pytest.param({"ingest": ("127.0.0.1:1", "127.0.0.1:2")}, id="several processes of a role"),
        pytest.param({"ingest": ("[::1]:9001",)}, id="a role on an IPv6 address"),
        pytest.param({"access_log": "/dev/null"}, id="another log"),
        pytest.param({"without": frozenset({"gzip", "fastcgi", "scgi"})}, id="fewer modules"),
    ],
)
def test_nginx_takes_the_text_without_a_warning(make_gateway, fields):
    roles = {"ingest": ("127.0.0.1:9001",), "query": ("127.0.0.1:9002",)}

    assert complaints(make_gateway(**roles | fields)) == ""


@pytest.mark.parametrize("module", ["gzip", "fastcgi", "uwsgi", "scgi"])
def test_directives_of_a_missing_module_are_left_out(module):
    text = config.render(msgspec.structs.replace(FIXED, without=frozenset({module})))

    assert f"{module}_" in config.render(FIXED)
    assert f"{module}_" not in text
    assert f"{module} " not in text


def test_a_plain_user_names_no_user_to_drop_to():
    text = config.render(msgspec.structs.replace(FIXED, run_as=None))

    assert "\nuser " not in text


def test_a_body_at_the_bound_is_let_through():
    assert FIXED.max_body_bytes > bounds.MAX_BODY_BYTES


def test_roles_keep_idle_connections_longer_than_the_gateway():
    """Else a request could meet a connection that its role is closing; uvicorn's is 75 s."""
    assert config.ROLE_IDLE_S < 75


_NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=40)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=_NAMES)
def test_a_folder_may_have_any_name(gateway_folder, name):
    folder = gateway_folder / f"x{name}"
    folder.mkdir(exist_ok=True)
    gateway = config.Gateway(
        servers.free_port(), *[("127.0.0.1:1",)] * 3, folder, worker_connections=64
    )

    assert complaints(gateway) == ""
    assert (folder / "client_body").is_dir()
