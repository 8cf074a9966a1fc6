"""Every case of the corpus, by its decoder: taken or refused as the index says, and never else."""

from __future__ import annotations

import time

import pytest
from corpus import cases
from fuzz import seeds, targets

SLOW_S = 5.0
"""Of the processor's time; the longest takes a tenth of it."""


@pytest.mark.parametrize("case", cases.index(), ids=lambda case: case.name)
def test_a_case_is_taken_or_refused_as_the_index_says(case):
    data = case.data
    begin_s = time.process_time()

    is_taken = targets.TARGETS[case.target](data)

    assert time.process_time() - begin_s < SLOW_S
    assert case.expect == "free" or is_taken == (case.expect == "accept")


def test_the_index_is_in_order():
    names = [one.name for one in cases.index()]
    kept = {one.file for one in cases.index() if one.file}

    assert len(set(names)) == len(names)
    assert {one.name for one in (cases.FOLDER / "files").iterdir()} == kept
    assert {one.target for one in cases.index()} == set(targets.TARGETS)
    assert len(names) > 700


@pytest.mark.parametrize("name", targets.TARGETS)
def test_fuzzing_begins_with_inputs_that_are_taken(name):
    assert any(targets.TARGETS[name](data) for data in seeds.of(name))
