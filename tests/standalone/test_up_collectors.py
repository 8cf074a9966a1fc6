"""A real `logweir up` has as many collector processes as its pipelines need."""

from __future__ import annotations

import json
import os
import secrets
import signal

import pytest
from upping import Up, upping

QUICK = """
kind: LogPipeline
apiVersion: logweir.dev/v1alpha1
metadata: {name: default}
spec:
  tenantRef: {name: demo}
  collector:
    autoscaling:
      maxReplicas: 2
      targetBacklogBytes: 65536
      scaleDown: {stabilizationWindowSeconds: 0}
"""
LOOKED_S = 60.0
"""A journal is looked at each 15 s, and the machine has other work."""


def states(up: Up) -> dict[str, str]:
    """State of each collector process that is wanted, by its name."""
    processes = up.shown()["processes"]
    return {o["name"]: o["state"] for o in processes if o["name"].startswith("collector")}


def scaling(up: Up) -> tuple[str, str]:
    """Reason and message of the pipeline's condition ScalingActive; empty while there is none."""
    status = json.loads(up.ok("get", "lp", "default", "-o", "json"))["status"]
    found = [one for one in status["conditions"] if one["type"] == "ScalingActive"]
    return (found[0]["reason"], found[0]["message"]) if found else ("", "")


@pytest.mark.slow
def test_a_backlog_starts_a_second_collector_that_stores_it_and_goes_again():
    with upping() as up:
        up.start()
        up.ok("apply", "-f", "-", given=QUICK)
        first = up.process_of("collector")["pid"]
        before = states(up)
        os.kill(first, signal.SIGSTOP)
        sent = [secrets.token_hex(2000) for _ in range(200)]
        for start in range(0, len(sent), 5):  # requests enough that one collector holds not all
            assert up.post(*sent[start : start + 5]).status_code == 200

        up.until(lambda: scaling(up)[0] == "AtMaximum", LOOKED_S)
        _, message = scaling(up)
        up.until(lambda: states(up).get("collector-1") == "ready")
        up.until_found("{}")  # the second one alone has stored it
        os.kill(first, signal.SIGCONT)
        found = up.until_found("{}", len(sent))
        up.until(lambda: states(up) == {"collector": "ready"}, LOOKED_S)

    assert before == {"collector": "ready"}
    assert message.endswith("collectors would do, but maxReplicas allows 2.")
    assert sorted(found) == sorted(sent)
