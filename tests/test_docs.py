"""The commands of the README and the how-tos are run as they stand there, in their order."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from logweir.core import keys, names

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
CODE = re.compile(r"`[^`\n]+`")
DOCUMENTS = sorted(
    path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
)
READY_WAIT_S = 90
FOUND_WAIT_S = 20


def commands(document: str) -> list[str]:
    """The commands of the document's `sh` blocks; a trailing backslash joins lines."""
    blocks = re.findall(
        r"^```sh\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL
    )
    joined = "".join(blocks).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip()]


def blocks(document: str, language: str) -> list[str]:
    """The document's blocks of a language, without their last line break."""
    text = (ROOT / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)\n```", text, re.MULTILINE | re.DOTALL)


class Shell:
    """Runs commands in the repository, against a Logweir of its own."""

    def __init__(self, folder: Path) -> None:
        self.env = {
            **os.environ,
            "LOGWEIR_DATA": str(folder),
            "LOGWEIR_PORT": "0",
            "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}",
            "NO_COLOR": "1",
        }
        for one in ("ARGS", "MAKEFLAGS", "MAKELEVEL"):  # of the `make test` that runs this
            self.env.pop(one, None)
        self.up: subprocess.Popen[bytes] | None = None

    def run(self, command: str, folder: Path = ROOT) -> str:
        """Run one command and return what it printed; a failure fails the test with its words."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def find(self, command: str) -> str:
        """Run a query until it finds something: what was sent is found after a moment."""
        deadline_s = time.monotonic() + FOUND_WAIT_S
        while not (found := self.run(command)) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        return found

    def status(self) -> dict:
        done = subprocess.run(
            ["logweir", "status", "--json"], env=self.env, capture_output=True, check=False
        )
        return json.loads(done.stdout)

    def start(self, command: str) -> str:
        """Run `make up` until it says that it is ready; return what it printed."""
        output = Path(self.env["LOGWEIR_DATA"]).with_suffix(".out")
        with output.open("wb") as file:
            self.up = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=ROOT,
                env=self.env,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline_s = time.monotonic() + READY_WAIT_S
        while not re.search(r"logweir tail.*\n", said := output.read_text()):
            assert self.up.poll() is None, said
            assert time.monotonic() < deadline_s, said
            time.sleep(0.05)
        return said

    def stop(self) -> None:
        if self.up is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.up.pid, signal.SIGINT)  # Ctrl-C reaches make and its child
            self.up.wait(60)
        subprocess.run(["logweir", "down"], env=self.env, capture_output=True, check=False)


@pytest.fixture
def shell() -> Iterator[Shell]:
    folder = Path(tempfile.mkdtemp(prefix="logweir-docs-"))
    folder.chmod(0o755)
    made = Shell(folder / "data")
    yield made
    made.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(300)
def test_a_newcomer_gets_from_the_readme_to_a_found_line(shell):
    steps = commands("README.md")
    up, curl, hello, send, failures, *others = steps
    said = shell.start(up)
    printed = re.search(r"curl (\S+) -H 'Authorization: Bearer (\S+)'", said)
    assert printed is not None, said
    sent = json.loads(
        shell.run(re.sub(r"http://\S+", printed[1], curl, count=1).replace("lwi_...", printed[2]))
    )
    found = shell.find(hello)
    shell.run(send)
    failed = shell.find(failures)
    rest = {one: shell.run(one) for one in others}

    assert sent["accepted"] == 1
    assert sent["rejected"] == []
    assert found.endswith("INFO    shop  hello\n")
    assert failed == "GET /pay 502\n"
    assert "ready" in rest[".venv/bin/logweir status"]
    assert "acme" in rest[".venv/bin/logweir get logtenants"]


@pytest.mark.timeout(300)
def test_the_how_to_of_tenants_works_step_by_step(shell):
    shell.run("logweir up --detach")
    applied, listed, _, sent, found, *rest = commands("docs/howto/tenants.md")
    second, rest = rest[:4], rest[4:]
    deleted, (adopted, found_again) = rest[:-2], rest[-2:]
    said = shell.run(applied)
    shell.run(listed)
    deadline_s = time.monotonic() + FOUND_WAIT_S
    while not (Path(shell.env["LOGWEIR_DATA"]) / "keys/default.acme.json").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    keys = json.loads(shell.run("logweir get keys acme"))
    _until_it_works(shell, sent)
    _until_it_works(shell, found)
    lines = shell.find(found)
    shell.run(second[0])
    _until_it_works(shell, second[1])
    _until_it_works(shell, second[2])
    assert "ledger" in shell.find(second[2])
    shell.run(second[3])
    for one in deleted:
        shell.run(one) if "logpipeline" in one else _until_it_works(shell, one)
    shell.run(adopted)
    _until_it_works(shell, found_again)

    assert said.splitlines() == [
        "logtenant.logweir.dev/acme created",
        "logpipeline.logweir.dev/shop created",
    ]
    assert set(keys["keys"]) == {"shop-servers", "support"}
    assert "ledger" in lines
    assert shell.find(found_again) == lines


@pytest.mark.timeout(300)
def test_the_how_to_of_limits_works_step_by_step(shell):
    shell.run("logweir up --detach")
    applied, sent, listed, table, total = commands("docs/howto/limits.md")
    said = shell.run(applied)
    _until_it_works(shell, sent)
    _until_it_works(shell, "logweir query --tenant globex")
    shell.find("logweir query --tenant globex")
    tenants = shell.run(listed)
    days = shell.run(table)
    rows = list(csv.DictReader(io.StringIO(shell.run(total))))

    assert "logpipeline.logweir.dev/debug created" in said
    assert "STORED" in tenants
    assert " web " in days
    lines = sum(1 for one in (ROOT / "README.md").read_text().splitlines() if one.strip())
    assert [(one["pipeline"], one["stored"]) for one in rows] == [("web", str(lines))]


@pytest.mark.timeout(300)
def test_the_how_to_of_keys_works_step_by_step(shell, tmp_path):
    shell.run("logweir up --detach")
    create, check, before, roll, rolled, revoke, after = [
        shell.run(one, tmp_path) for one in commands("docs/howto/keys.md")
    ]
    texts = [(tmp_path / name).read_text().strip() for name in ("web.key", "web-2.key")]

    assert (create, roll, revoke) == ("", "", "")
    assert "tenant     demo" in check
    assert [_web(one) for one in (before, rolled, after)] == [
        ["active"],
        ["active", "ending"],
        ["revoked", "revoked"],
    ]
    assert all(re.fullmatch(blocks("docs/howto/keys.md", "text")[0], one) for one in texts)


def _web(table: str) -> list[str]:
    """States of the generations of the key `web`."""
    return [line.split()[3] for line in table.splitlines() if line.startswith("web ")]


@pytest.mark.timeout(300)
def test_the_how_to_of_rotations_works_step_by_step(shell):
    shell.run("logweir up --detach")
    applied, rotated, shown, roots = commands("docs/howto/rotate.md")
    shell.run(applied)
    _until_it_works(shell, rotated)
    deadline_s = time.monotonic() + FOUND_WAIT_S
    while not re.search(r"overlapUntil: .*T", said := shell.run(shown)):
        assert time.monotonic() < deadline_s, said
    secrets = Path(shell.env["LOGWEIR_DATA"]) / "secrets.json"
    shell.run(roots)
    while len(json.loads(secrets.read_text())["roots"]) < 2:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)

    assert "revision: 2" in said


def test_the_rule_for_secret_scanners_finds_keys_and_no_typos():
    expression, vectors = blocks("docs/howto/keys.md", "text")
    found: dict[str, Any] = {}
    exec(blocks("docs/howto/keys.md", "python")[0], found)
    is_key = found["is_key"]
    shown = vectors.split()
    pipelines, revisions = (0, 7, (1 << 32) - 1), (1, (1 << 14) - 1)
    made = [
        keys.text_of(
            keys.ApiKey(names.TenantId(tenant), key_id, pipeline, scopes, ends, revision),
            bytes(32),
        )
        for tenant in ("acm", "a" * 32, "acme-co")
        for key_id in (0, 1 << 62)
        for pipeline in pipelines
        for scopes in (keys.SCOPE_INGEST, keys.SCOPE_QUERY | keys.SCOPE_ADMIN)
        for ends in (0, (1 << 32) - 1)
        for revision in revisions
    ]

    for text in [*made, *shown]:
        assert re.findall(expression, f'key: "{text}",') == [text]
        assert is_key(text) == (keys.decode(text) is not None)
    assert all(map(is_key, made))
    assert [is_key(text) for text in shown] == [True, True, False]


@pytest.mark.timeout(300)
def test_the_how_to_of_serving_works_step_by_step(shell):
    folder = Path(shell.env["LOGWEIR_DATA"]).parent
    steps = commands("docs/howto/serve.md")
    certificate, secure, send, query, down, proxied, again, alone = (
        one.replace("/etc/logweir", str(folder)) for one in steps
    )
    shell.run(certificate)
    shell.run(secure)
    shell.run(send)
    found = shell.find(query)
    url = shell.status()["url"]
    shell.run(down)
    shell.run(proxied)
    plain = shell.status()["url"]
    shell.run(again)
    shell.run(alone)
    names = [one["name"] for one in shell.status()["processes"]]

    assert "Logweir" in found
    assert url.startswith("https://127.0.0.1:")
    assert plain.startswith("http://127.0.0.1:")
    assert "front" in names


def _until_it_works(shell: Shell, command: str) -> None:
    """A tenant is served, and can be deleted once its pipelines are gone, within seconds."""
    deadline_s = time.monotonic() + FOUND_WAIT_S
    while True:
        try:
            shell.run(command)
        except AssertionError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)
        else:
            return


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_of_a_document_lead_somewhere(document):
    links = LINK.findall(CODE.sub("", (ROOT / document).read_text()))

    missing = [
        link
        for link in links
        if not link.startswith("http") and not (ROOT / document).parent.joinpath(link).exists()
    ]

    assert missing == []
