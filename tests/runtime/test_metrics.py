"""Metrics keep Prometheus' conventions."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from logweir.runtime import metrics

FAMILIES = {
    name: value
    for name, value in vars(metrics).items()
    if isinstance(value, Counter | Gauge | Histogram)
}


def touch_all() -> str:
    """Give every metric a value, as a process that has done everything would have."""
    for family in FAMILIES.values():
        names = family._labelnames
        family.labels(*("x" for _ in names)) if names else family
    return metrics.text().decode()


def test_promtool_finds_nothing_to_complain_about():
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on this machine; .ci/run installs it")

    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input=touch_all(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert checked.stdout + checked.stderr == ""
    assert checked.returncode == 0


def test_every_metric_is_ours_and_says_what_it_means():
    text = touch_all()

    families = [
        one
        for one in text_string_to_metric_families(text)
        if not one.name.startswith(("python_", "process_"))
    ]

    assert families
    assert [one.name for one in families if not one.name.startswith("logweir_")] == []
    assert [one.name for one in families if len(one.documentation) < 20] == []


def test_no_series_tells_when_it_was_created():
    assert "_created" not in touch_all()
