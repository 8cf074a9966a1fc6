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
from logweir.gateway.routes import BODY_BYTES
from logweir.query import params, search
from logweir.runtime.settings import Tls
from logweir.standalone import binaries, servers

GOLDEN = Path(__file__).parent / "golden"

FIXED = config.Gateway(
    port=7080,
    roles={"ingest": ("127.0.0.1:9001", "127.0.0.1:9002"), "query": ("127.0.0.1:9003",)},
    folder=Path("/var/lib/logweir/gateway"),
    run_as=("logweir", "logweir"),
)


FULL = config.Gateway(
    port=443,
    roles=FIXED.roles | {"auth": ("127.0.0.1:9004",)},
    folder=FIXED.folder,
    host="::",
    tls=Tls("/etc/logweir/tls.crt", "/etc/logweir/tls.key"),
    trusted_proxies=("10.0.0.0/8", "2001:db8::/32"),
    version=(1, 31, 3),
    added=frozenset({"ssl", "v2", "realip", "auth_request"}),
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


@pytest.mark.parametrize(("name", "gateway"), [("nginx.conf", FIXED), ("full.conf", FULL)])
def test_the_text_is_what_was_agreed_on(name, gateway):
    """After a wished change, write what is rendered to the golden file, and read the diff."""
    assert config.render(gateway) == (GOLDEN / name).read_text()


def test_an_nginx_before_1_25_1_gets_http_2_in_its_own_words():
    text = config.render(msgspec.structs.replace(FULL, version=(1, 22, 1)))

    assert "listen [::]:443 backlog=1024 ssl http2;" in text
    assert "http2 on;" not in text
    assert "keepalive_min_timeout" not in text


def test_an_nginx_without_http_2_and_without_a_way_to_ask_is_not_told_of_them():
    text = config.render(msgspec.structs.replace(FULL, added=frozenset({"ssl"})))

    assert "http2" not in text
    assert "auth_request" not in text
    assert "/-/key" not in text


def test_a_role_that_is_not_there_has_no_routes():
    assert "location /api/v1/auth/ {" in config.render(FULL)
    assert "location /api/v1/auth/ {" not in config.render(FIXED)
    assert "location = /.well-known/jwks.json {" not in config.render(FIXED)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="as it is"),
        pytest.param({"host": "0.0.0.0"}, id="on all addresses"),
        pytest.param({"host": "::1"}, id="on an IPv6 address"),
        pytest.param({"ingest": ("127.0.0.1:1", "127.0.0.1:2")}, id="several processes of a role"),
        pytest.param({"ingest": ("[::1]:9001",)}, id="a role on an IPv6 address"),
        pytest.param({"auth": ("127.0.0.1:9003",)}, id="every role"),
        pytest.param({"trusted_proxies": ("10.0.0.0/8", "::1")}, id="behind a proxy"),
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
    assert BODY_BYTES["ingest"] > bounds.MAX_BODY_BYTES
    assert BODY_BYTES["query"] > params.MAX_BODY_BYTES


def test_a_page_of_records_fits_into_the_file_of_an_answer():
    assert config.ANSWER_FILE_MIB << 20 > search.MAX_ANSWER_BYTES


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
        servers.free_port(), {"query": ("127.0.0.1:2",)}, folder, worker_connections=64
    )

    assert complaints(gateway) == ""
    assert (folder / "client_body").is_dir()
