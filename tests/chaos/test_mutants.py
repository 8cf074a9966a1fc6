"""Each mutant can still be made of the product as it is, and is a program."""

from __future__ import annotations

import compileall

import pytest
from chaos import mutants, mutation
from chaos.mutants import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.name)
def test_a_mutant_applies_and_compiles(mutant, tmp_path):
    folder = mutants.copy(mutant, tmp_path / "copy")

    changed = [edit.file for edit in mutant.edits]
    assert all(
        (folder / "logweir" / file).read_text()
        != (mutants.ROOT / "services/logweir" / file).read_text()
        for file in changed
    )
    assert compileall.compile_dir(folder, quiet=1, force=True)


def test_an_edit_whose_text_is_gone_fails_loudly(tmp_path):
    gone = mutants.Edit("collector/worker.py", "no such text", "")

    with pytest.raises(ValueError, match=r"collector/worker\.py has 0 times"):
        mutants.copy(mutants.Mutant("gone", "", (gone,), (), "lost"), tmp_path / "copy")


def test_each_fault_of_a_mutant_can_be_done():
    moves = [mutation.move(fault) for mutant in MUTANTS for fault in mutant.faults]

    assert all(callable(one.act) for one in moves)


def test_names_are_chosen_by_word_by_number_or_all():
    names = [one.name for one in MUTANTS]

    assert [one.name for one in mutation.chosen("", 1)] == ["the product as it is", *names]
    assert [one.name for one in mutation.chosen("keyless", 1)] == ["keyless"]
    assert len(mutation.chosen("3", 1)) == 3
    assert mutation.chosen("3", 1) == mutation.chosen("3", 1)
    assert mutation.chosen("3", 1) != mutation.chosen("3", 2)
    with pytest.raises(SystemExit, match="no such mutant"):
        mutation.chosen("unheard of", 1)
