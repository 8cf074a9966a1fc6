"""Each mutant can still be made of the product as it is, and is a program."""

from __future__ import annotations

import pytest
from chaos import mutants, mutation
from chaos.mutants import MUTANTS

from logweir.backends import redis_client
from logweir.core.binding import JournalServer, Login
from logweir.standalone import servers


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.name)
def test_a_mutant_can_be_made_and_compiles(mutant):
    texts = mutants.edited(mutant)

    assert texts
    for file, text in texts.items():
        assert text != (mutants.ROOT / "services/logweir" / file).read_text()
        if file.endswith(".py"):
            compile(text, file, "exec")


@pytest.mark.parametrize(
    "mutant", [one for one in MUTANTS if "backends/journal.lua" in mutants.edited(one)]
)
async def test_a_mutant_of_the_journal_s_functions_can_be_loaded(mutant, start_journal):
    server = start_journal()
    client = redis_client.client(
        JournalServer(servers.LOOPBACK, server.port), Login("lw_operator", "operator")
    )

    assert await client.function_load(mutants.edited(mutant)["backends/journal.lua"])
    await client.aclose()


def test_a_copy_is_what_the_mutant_says_and_else_the_product(tmp_path):
    mutant = next(one for one in MUTANTS if one.name == "keyless")
    copy = mutants.copy(mutant, tmp_path / "copy") / "logweir"
    product = mutants.ROOT / "services/logweir"

    differ = [
        str(path.relative_to(product))
        for path in product.rglob("*.py")
        if path.read_bytes() != (copy / path.relative_to(product)).read_bytes()
    ]

    assert differ == ["ingest/app.py"]
    assert (copy.parent / "logweir_operator" / "plan.py").exists()


def test_an_edit_whose_text_is_gone_fails_loudly():
    gone = mutants.Edit("collector/worker.py", "no such text", "")

    with pytest.raises(ValueError, match=r"collector/worker\.py has 0 times"):
        mutants.edited(mutants.Mutant("gone", "", (gone,), (), "lost"))


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
