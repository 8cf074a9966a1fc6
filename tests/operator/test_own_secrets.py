"""Secrets that the operator writes for the platform's own roles, and those that it reads."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

from operating import Place, until

from logweir_operator.config import POSTGRES_CA, REDIS_CA


def authority(operated: Place) -> None:
    """Let the mounted Secrets have certificates of authorities."""
    for name in ("postgres", "redis"):
        (operated.folder / name / "ca.crt").write_text("a certificate")


def files(part: Any) -> set[str]:
    """All files of authorities that a binding names."""
    if isinstance(part, list):
        return set().union(*map(files, part))
    if not isinstance(part, dict):
        return set()
    own = {str(part["ca_file"])} if part.get("ca_file") else set()
    return own.union(*map(files, part.values()))


async def test_each_role_finds_its_certificates_beside_its_binding(operated: Place):
    authority(operated)
    await operated.start()
    for role, wanted in (
        ("query", {POSTGRES_CA, REDIS_CA}),
        ("auth", {POSTGRES_CA, REDIS_CA}),
        ("keeper", {POSTGRES_CA}),
    ):
        name = f"{operated.release}-{role}-binding"
        found = await until(lambda name=name: operated.find("Secret", name))
        data = {key: base64.b64decode(text) for key, text in found["data"].items()}
        named = files(json.loads(data["binding.json"]))

        assert named == {f"/etc/logweir/binding/{one}" for one in wanted}
        assert wanted <= data.keys()
    await operated.stop()


async def test_the_process_begins_anew_when_the_servers_secrets_change(
    operated: Place, monkeypatch
):
    from logweir_operator import app

    monkeypatch.setattr(app, "MOVED_S", 0.05)
    life = await operated.start()
    await operated.apply_tenant(apiKeys=[])
    await operated.ready("LogTenant", "acme")
    assert not life.stopping.is_set()
    (operated.folder / "redis" / "password").write_text("another")
    async with asyncio.timeout(20):
        await life.stopping.wait()
    await operated.stop()
