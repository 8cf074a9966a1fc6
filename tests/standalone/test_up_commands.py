"""The commands that work on a running `logweir up`, as its user types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import httpx2
import psycopg
import pytest
from reconciling import pipeline, tenant, text
from upping import Up

DOCUMENTED = {
    "ready": bool,
    "url": str,
    "dashboard_url": (str, type(None)),
    "tenant": str,
    "pipeline": str,
    "ingest_url": str,
    "ingest_key": str,
    "query_key": str,
    "processes": list,
}
OF_A_PROCESS = {
    "name": str,
    "pid": (int, type(None)),
    "state": str,
    "restarts": int,
    "why": str,
}
PROCESSES = [
    *("postgres", "valkey", "operator", "ingest", "collector", "query", "gateway", "keeper", "auth")
]


@pytest.fixture
def up(shared_up: Up) -> Up:
    return shared_up


def new_tenant(up: Up, name: str, **spec: object) -> dict:
    """Apply a tenant with a pipeline; return its keys and addresses once it is made."""
    up.ok("apply", "-f", "-", given=text(tenant(name, **spec), pipeline(of=name)))

    def keys() -> dict | None:
        ran = up.run("get", "keys", name)
        found = json.loads(ran.stdout) if ran.returncode == 0 else {}
        return found if found.get("pipelines") else None

    return up.until(keys)


def delete(up: Up, name: str) -> None:
    up.ok("delete", "-f", "-", given=text(tenant(name), pipeline(of=name)))


# ---- status, logs ---------------------------------------------------------------------------


def test_the_status_for_scripts_has_what_is_documented(up):
    ran = up.run("status", "--json")
    shown = json.loads(ran.stdout)

    assert ran.returncode == 0
    assert {
        name: shown[name] for name in DOCUMENTED if isinstance(shown[name], DOCUMENTED[name])
    } == {name: shown[name] for name in DOCUMENTED}
    assert shown["ready"]
    assert shown["ingest_url"] == f"{shown['url']}/t/demo/default/ingest"
    assert [one["name"] for one in shown["processes"]] == PROCESSES
    for one in shown["processes"]:
        assert all(isinstance(one[name], kind) for name, kind in OF_A_PROCESS.items())


def test_the_status_lists_where_metrics_are(up):
    urls = {one["name"]: one["ops_url"] for one in up.shown()["processes"]}
    answer = httpx2.get(f"{urls['ingest']}/metrics")

    assert "logweir_ingest_requests_total" in answer.text
    assert all(urls[role] for role in ("operator", "ingest", "collector", "query", "keeper"))


def test_the_status_for_people_is_a_table(up):
    lines = up.ok("status").splitlines()

    assert lines[0].startswith("ready  http://127.0.0.1:")
    assert [line.split()[:2] for line in lines[1:]] == [[name, "ready"] for name in PROCESSES]


def test_logs_of_all_are_named_and_those_of_one_are_plain(up):
    all_of_them = up.ok("logs", "-n", 3).splitlines()
    [last] = up.ok("logs", "operator", "-n", 1).splitlines()

    assert {line.split(" | ")[0].strip() for line in all_of_them} >= {"postgres", "operator"}
    assert json.loads(last)["role"] == "operator"


def test_logs_of_nobody_are_an_error_that_names_the_others(up):
    ran = up.run("logs", "nobody")

    assert ran.returncode == 1
    assert "There are: " in ran.stderr
    assert "postgres" in ran.stderr


def test_logs_are_followed(up):
    process = up.popen("logs", "operator", "-f", "-n", "1")
    process.stdout.readline()  # it has begun
    up.ok("apply", "-f", "-", given=text(tenant("followed")))
    line = json.loads(next(line for line in process.stdout if "followed" in line))
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=10)
    up.ok("delete", "lt", "followed")

    assert (line["role"], line["tenant"]) == ("operator", "followed")
    assert process.returncode == 130


def test_a_second_up_is_told_who_holds_the_folder(up):
    for options in ([], ["--detach"]):
        ran = up.run("up", "--port", 0, *options)

        assert ran.returncode == 1
        assert f"in use by another 'logweir up', process {up.shown()['pid']}." in ran.stderr
        assert "logweir down --data" in ran.stderr


def test_doctor_finds_all_well(up):
    ran = up.run("doctor", "--json")
    found = {one["name"]: one for one in json.loads(ran.stdout)}

    assert ran.returncode == 0, ran.stdout
    assert all(one["is_well"] for one in found.values())
    assert "in use by the running 'logweir up'" in found["port"]["found"]


# ---- send, query ----------------------------------------------------------------------------


def test_lines_of_a_file_are_found_as_they_were(up):
    path = up.home / "lines.log"
    path.write_text("plain of-file\n\n" + '{"msg": "json of-file", "service": "other", "n": 7}\n')
    ran = up.run("send", path, "--service", "web", "--level", "warn", "--host", "db1")
    up.until_found('{} |= "of-file"', 2)
    found = [
        json.loads(one) for one in up.ok("query", '{} |= "of-file"', "-o", "json").splitlines()
    ]

    assert ran.returncode == 0
    assert "sent 2 records in 1 requests; last receipt " in ran.stderr
    assert [(one["message"], one["labels"]) for one in found] == [
        (
            "plain of-file",
            {"service": "web", "level": "warn", "host": "db1", "pipeline": "default"},
        ),
        (
            "json of-file",
            {"service": "other", "level": "warn", "host": "db1", "pipeline": "default"},
        ),
    ]
    assert found[1]["attributes"]["n"] == 7


def test_bad_lines_are_named_and_the_good_ones_are_sent(up):
    bad = json.dumps({"message": "bad-line", "timestamp": "yesterday"})
    ran = up.run("send", given=f"good-line 1\n{bad}\ngood-line 2\n{'x' * (1 << 20)}x\n")

    assert ran.returncode == 1
    assert "line 2: timestamp 'yesterday' is neither RFC 3339 nor an integer" in ran.stderr
    assert "line 4: larger than 1048576 bytes" in ran.stderr
    assert up.until_found('{} |= "good-line"', 2) == ["good-line 1", "good-line 2"]


def test_a_line_of_a_pipe_that_stays_open_is_sent_soon(up):
    process = subprocess.Popen(up.command("send"), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(b"piped\n")
    process.stdin.flush()
    found = up.until_found('{} |= "piped"')
    said = process.communicate()[1]

    assert found == ["piped"]
    assert b"sent 1 records" in said


def test_more_records_than_a_page_has_are_all_found_in_their_order(up):
    lines = "\n".join(f"paged {number:04}" for number in range(2500))
    up.ok("send", given=lines)
    found = up.until_found('{} |= "paged"', 2500)

    assert found == lines.splitlines()
    assert up.messages('{} |= "paged"', "-n", 3) == lines.splitlines()[-3:]
    assert up.messages('{} |= "paged"', "-n", 2, "--newest-first") == ["paged 2499", "paged 2498"]


def test_a_range_of_time_is_kept(up):
    hour_ago_s = int(time.time()) - 3600
    up.ok("send", given=json.dumps({"message": "ranged old", "timestamp": hour_ago_s}))
    up.ok("send", given="ranged new")

    both = up.until_found('{} |= "ranged"', 2, "--since", "2h")
    assert both == ["ranged old", "ranged new"]
    assert up.messages('{} |= "ranged"', "--since", "10m") == ["ranged new"]
    assert up.messages('{} |= "ranged"', "--since", "2h", "--until", "10m") == ["ranged old"]
    assert up.messages('{} |= "ranged"', "--since", str(hour_ago_s), "--until", "30m") == [
        "ranged old"
    ]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        pytest.param("default", "WARN    web  formed", id="default"),
        pytest.param("raw", "formed", id="raw"),
        pytest.param("logfmt", "service=web msg=formed", id="logfmt"),
        pytest.param("json", '"message":"formed"', id="json"),
    ],
)
def test_records_are_printed_in_each_form(up, form, expected):
    if not up.messages('{service="web"} |= "formed"'):
        up.ok("send", "--service", "web", "--level", "warn", given="formed")
        up.until_found('{service="web"} |= "formed"')

    assert expected in up.ok("query", '{service="web"} |= "formed"', "-o", form, "-n", 1)


def test_a_bad_query_shows_where_it_is_wrong(up):
    ran = up.run("query", '{service="a"} |= ')

    assert ran.returncode == 1
    assert ran.stderr.splitlines()[:2] == ['  {service="a"} |= ', " " * 19 + "^"]
    assert "(line 1, column 18)" in ran.stderr


def test_a_bad_query_of_a_tail_shows_where_it_is_wrong(up):
    ran = up.run("tail", "{service=}")

    assert ran.returncode == 1
    assert "^" in ran.stderr
    assert "error: " in ran.stderr


def test_a_key_without_the_scope_is_refused_in_words(up):
    shown = up.shown()
    ran = up.run("query", "--url", shown["url"], "--key", shown["ingest_key"])

    assert ran.returncode == 1
    assert "does not have the scope 'query'" in ran.stderr


def test_a_reader_who_has_seen_enough_ends_it_silently(up):
    up.ok("send", given="\n".join(f"headed {n}" for n in range(100)))
    up.until_found('{} |= "headed"', 100)
    words = " ".join(up.command("tail", "{}", "-n", 100, "-o", "raw"))
    ran = os.popen(f"{words} 2>&1 | head -n 2")
    said = ran.read().splitlines()
    ran.close()

    assert len(said) == 2
    assert "Error" not in "".join(said)


# ---- tail -----------------------------------------------------------------------------------


def test_a_tail_shows_the_last_lines_and_then_live_ones(up):
    up.ok("send", given="tailed 1\ntailed 2\n")
    up.until_found('{} |= "tailed"', 2)
    process = up.popen("tail", '{} |= "tailed"', "-n", "1", "-o", "raw")
    first = process.stdout.readline()
    up.ok("send", given="tailed 3")
    second = process.stdout.readline()
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=10)

    assert (first, second) == ("tailed 2\n", "tailed 3\n")
    assert process.returncode == 130


# ---- resources ------------------------------------------------------------------------------


def test_a_second_tenant_is_served_within_seconds_with_its_own_keys(up):
    begun_s = time.monotonic()
    keys = new_tenant(up, "second")
    url = f"{keys['url']}/web/ingest"
    up.until(lambda: up.post("of second", url=url, key=keys["keys"]["in"]).status_code == 200)
    own = ("--url", keys["url"] + "/web", "--key", keys["keys"]["out"])
    found = up.until(lambda: up.run("query", "{}", "-o", "raw", *own).stdout)
    served_s = time.monotonic() - begun_s
    print(f"a new tenant is served after {served_s:.2f} s")

    assert found.splitlines()[0] == "of second"
    assert "of second" not in up.messages("{}")
    assert up.messages("{}", "--tenant", "second")[0] == "of second"
    assert served_s < 10  # 5 on a machine that does nothing else
    delete(up, "second")


def test_a_wrong_manifest_is_refused_and_changes_nothing(up):
    before = up.ok("get", "all")
    ran = up.run(
        "apply", "-f", "-", given=text(tenant("good"), tenant("bad", retention={"day": 1}))
    )

    assert ran.returncode == 1
    assert ran.stderr == (
        'error: standard input: LogTenant "bad": spec.retention.day: unknown field;'
        " did you mean days?\n"
    )
    assert [one[0] for one in map(str.split, up.ok("get", "all").splitlines()) if one] == [
        one[0] for one in map(str.split, before.splitlines()) if one
    ]


def test_a_changed_file_of_the_folder_is_applied_and_a_wrong_one_is_shown(up):
    path = up.data / "manifests" / "more.yaml"
    path.write_text(text(tenant("filed", displayName="one")))
    up.until(lambda: up.run("get", "lt/filed").returncode == 0)
    path.write_text(text(tenant("filed", deletionPolicy="Keep")))
    problems = up.until(lambda: up.shown()["problems"])

    assert problems == [
        'more.yaml: LogTenant "filed": spec.deletionPolicy: Unsupported value: "Keep":'
        ' supported values: "Delete", "Retain"'
    ]
    assert "not applied: more.yaml" in up.ok("status")

    path.write_text(text(tenant("filed", displayName="two")))
    up.until(lambda: "displayName: two" in up.ok("get", "lt", "filed", "-o", "yaml"))

    assert up.shown()["problems"] == []
    path.unlink()
    delete_ran = up.run("delete", "lt/filed")
    assert (delete_ran.returncode, delete_ran.stdout) == (
        0,
        'logtenant.logweir.dev "filed" deleted\n',
    )


def test_nothing_found_is_said_as_kubectl_says_it(up):
    ran = up.run("get", "lt", "-n", "empty")

    assert (ran.returncode, ran.stdout) == (0, "")
    assert ran.stderr == "No resources found in empty namespace.\n"
    assert 'logtenants.logweir.dev "nobody" not found' in up.run("get", "lt", "nobody").stderr


def test_a_deleted_pipeline_drains_first(up):
    keys = new_tenant(up, "drained")
    statuses = []

    def post() -> int:
        answer = up.post("hello", url=f"{keys['url']}/web/ingest", key=keys["keys"]["in"])
        statuses.append(answer.status_code)
        return answer.status_code

    up.until(lambda: post() == 200)
    collector = up.process_of("collector")["pid"]
    os.kill(collector, signal.SIGSTOP)
    try:
        post()
        deleting = up.popen("delete", "lp", "web")
        up.until(lambda: post() in (401, 403))
        is_listed = "Deleting" in up.ok("get", "lp", "web")
        is_waiting = deleting.poll() is None
    finally:
        os.kill(collector, signal.SIGCONT)
    deleting.communicate(timeout=30)

    assert (is_listed, is_waiting, deleting.returncode) == (True, True, 0)
    assert statuses.count(200) > 1
    assert _records_of(up, keys["tenant"]) == statuses.count(200)

    up.ok("delete", "lt", "drained")


def _records_of(up: Up, of: str) -> int:
    """How many records the store holds of a tenant, asked as its superuser."""
    secret = json.loads((up.data / "secrets.json").read_text())["postgres_password"]
    port = json.loads((up.data / "ports.json").read_text())["postgres"]
    address = f"postgresql://postgres:{secret}@127.0.0.1:{port}/logweir"
    with psycopg.connect(address) as connection:
        [count] = connection.execute(f"select sum(n)::int from t_{of}.segments").fetchone()
    return count


def test_a_tenant_with_pipelines_is_kept_and_said_so(up):
    ran = up.run("delete", "lt", "demo")

    assert ran.returncode == 1
    assert 'LogTenant "demo" still has pipelines: default.' in ran.stderr


def test_all_that_is_listed_can_be_applied_again(up, tmp_path: Path):
    whole = tmp_path / "all.yaml"
    whole.write_text(up.ok("get", "all", "-o", "yaml"))

    said = up.ok("apply", "-f", whole)
    assert all(line.endswith(" unchanged") for line in said.splitlines())
