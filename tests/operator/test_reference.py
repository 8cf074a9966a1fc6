"""The reference pages of both kinds leave nothing out, and their examples are good."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import get_args

import pytest
import yaml
from bounding import SCHEMAS, walk

from logweir_operator import events, manifest, rules, status

DOCS = Path(__file__).parents[2] / "docs"
MADE = runpy.run_path(str(DOCS / "generate.py"))
PAGES = {kind: (DOCS / "reference" / f"{kind.lower()}.md").read_text() for kind in SCHEMAS}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_each_field_stands_on_the_page_with_its_description(kind):
    for path, schema in walk(SCHEMAS[kind]):
        if not path.startswith(("spec", "status")) or path.startswith("status.conditions["):
            continue
        if not path.endswith(("[]", ".*")):
            assert schema["description"].replace("|", "\\|") in PAGES[kind], path


@pytest.mark.parametrize("kind", SCHEMAS)
def test_each_rule_stands_on_the_page_in_its_words(kind):
    for rule in rules.RULES[kind]:
        assert f"| `{rule.field}` | {rule.message} |" in PAGES[kind]


def test_each_reason_of_each_condition_stands_on_a_page():
    said = "".join(PAGES.values())
    for condition, reasons in status.REASONS.items():
        _, _, after = said.partition(f"**{condition}**")
        assert after
        for reason, text in reasons.items():
            assert f"| `{reason}` | {text} |" in said


def test_each_event_stands_on_a_page():
    assert {*events.REASONS} == {*get_args(events.Reason)}
    assert {one for kind in SCHEMAS for one in MADE["EVENTS"][kind]} == {*events.REASONS}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_example_is_a_good_manifest(kind):
    assert manifest.resource(yaml.safe_load(MADE["EXAMPLES"][kind])).kind == kind
