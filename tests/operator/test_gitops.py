"""What docs/howto/gitops.md tells Argo CD about our conditions, by the statuses that we write."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from lupa.lua51 import LuaRuntime  # the version of Lua that Argo CD has
from viewing import pipeline_view

from logweir_operator import status
from logweir_operator.plan import Verdict
from logweir_operator.status import PipelineFacts, TenantFacts

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "gitops.md"
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
SCRIPTS = {
    name.rpartition("_")[2]: script for name, script in yaml.safe_load(BLOCKS[0])["data"].items()
}


NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
ROUTE = {"exposure": {"type": "HTTPRoute", "host": "a.example", "parentRefs": [{"name": "g"}]}}


def health(found: dict[str, Any] | None, kind: str = "LogTenant") -> tuple[str, str]:
    """What Argo CD shows of a resource of generation 1 with this status."""
    lua = LuaRuntime(unpack_returned_tuples=True)
    judge = lua.eval(f"function(obj) {SCRIPTS[kind]} end")
    one = {"metadata": {"generation": 1}} | ({"status": found} if found else {})
    shown = judge(lua.table_from(one, recursive=True))
    return shown["status"], shown["message"]


def of_tenant(verdict: Verdict | None) -> dict[str, Any]:
    return status.tenant_status(TenantFacts(generation=1, verdict=verdict, is_made=True), {}, NOW)


def deployment(condition: dict[str, str] | None = None) -> dict[str, Any]:
    counts = ("replicas", "readyReplicas", "availableReplicas", "updatedReplicas")
    found = {**dict.fromkeys(counts, 1), "observedGeneration": 1}
    return {
        "metadata": {"name": "web", "generation": 1},
        "spec": {"replicas": 1},
        "status": found | ({"conditions": [condition]} if condition else {}),
    }


def of_pipeline(spec: dict[str, Any] | None = None, **facts: Any) -> dict[str, Any]:
    known = {
        "resource": pipeline_view(spec=spec).resource,
        "generation": 1,
        "ingest": deployment(),
        "collector": deployment(),
        "fresh": ("False", "Behind", "Records wait."),
    }
    return status.pipeline_status(PipelineFacts(**(known | facts)), {}, NOW)


@pytest.mark.parametrize("reason", status.VERDICTS)
def test_each_verdict_on_a_resource_has_its_health(reason):
    is_stalled = reason in status.REASONS["Stalled"]
    found = of_tenant(Verdict(reason, "It is so.", is_stalled=is_stalled))
    expected = {"Suspended": "Suspended", "PermissionDenied": "Degraded"}

    shown = "Degraded" if is_stalled else expected.get(reason, "Progressing")
    assert health(found) == (shown, f"{reason}: It is so.")


@pytest.mark.parametrize("kind", SCRIPTS)
def test_what_is_ready_is_healthy(kind):
    found = of_tenant(None) if kind == "LogTenant" else of_pipeline()

    assert health(found, kind) == ("Healthy", "Reconciled: Everything is as the resource says.")


def test_what_nobody_has_looked_at_is_progressing():
    old = of_tenant(None) | {"observedGeneration": 0}

    for found in (None, old):
        assert health(found) == ("Progressing", "The operator has not looked at it yet.")


@pytest.mark.parametrize(
    ("found", "shown", "reason"),
    [
        pytest.param(of_pipeline(collector=None), "Progressing", "NotServed", id="being made"),
        pytest.param(
            of_pipeline(
                ingest=deployment({"type": "Progressing", "reason": "ProgressDeadlineExceeded"})
            ),
            "Degraded",
            "RolloutStuck",
            id="pods that do not start",
        ),
        pytest.param(of_pipeline(ROUTE), "Degraded", "KindNotServed", id="no Gateway API"),
        pytest.param(
            of_pipeline(ROUTE, served_kinds=frozenset({"HTTPRoute"})),
            "Progressing",
            "AwaitingAddress",
            id="a route that nobody has taken",
        ),
    ],
)
def test_a_pipeline_has_the_health_of_the_first_part_that_fails(found, shown, reason):
    state, message = health(found, "LogPipeline")

    assert (state, message.partition(":")[0]) == (shown, reason)


def test_both_kinds_have_the_same_script():
    assert SCRIPTS.keys() == {"LogTenant", "LogPipeline"}
    assert len({*SCRIPTS.values()}) == 1
