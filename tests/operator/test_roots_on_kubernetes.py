"""New roots on Kubernetes: asked for, spread, used; also when the operator dies half-way."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import psycopg
from operating import Place, until

from logweir.backends import rotations
from logweir_operator import kube
from logweir_operator.own_secrets import ROOTS_KEY, roots_name
from logweir_operator.roots import conninfo, site_of
from logweir_operator.rootsets import RootSecrets


class Deaf(kube.Kube):
    """A way to the API server on which no Secret says that new roots are used."""

    async def request(
        self, method: str, path: str, body: object = None, **options: Any
    ) -> dict[str, Any]:
        if method == "patch" and path.endswith("-roots") and _held(body)["used"] == 2:
            raise kube.KubeError("The API server is away just now.")
        return await super().request(method, path, body, **options)


def _held(body: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.b64decode(body["data"][ROOTS_KEY]))
    return found


async def opens(operated: Place, version: int) -> bool:
    """Whether the operator's login has the password of this version of the roots."""
    secret = await operated.get("Secret", roots_name(operated.release))
    held = msgspec.json.decode(base64.b64decode(secret["data"][ROOTS_KEY]), type=RootSecrets)
    if version not in {one.version for one in held.roots}:
        return False
    servers = operated.config.servers()
    used = msgspec.structs.replace(held, used=version)
    try:
        psycopg.connect(conninfo(site_of(servers.store, servers.journal, used))).close()
    except psycopg.OperationalError:
        return False
    return True


async def used(operated: Place) -> int:
    found: int = _held(await operated.get("Secret", roots_name(operated.release)))["used"]
    return found


async def running(operated: Place, **options: Any) -> None:
    await operated.start(**options)
    await operated.apply_tenant()
    await operated.apply_pipeline()
    await operated.ready("LogPipeline", "web")
    await operated.control.ask(rotations.ROOTS, None)


async def test_new_roots_come_to_tenants_and_roles(operated_alone: Place):
    operated = operated_alone
    await running(operated)
    before = await operated.get("Secret", "web-collector-binding")

    async def is_used() -> bool:
        return await used(operated) == 2

    await until(is_used)

    async def is_spread() -> bool:
        tenant = (await operated.get("LogTenant", "acme"))["status"]
        return tenant["credentials"].get("rootVersion") == 2

    await until(is_spread, 30)
    assert (await operated.get("Secret", "web-collector-binding"))["data"] != before["data"]
    await operated.stop()


async def test_an_operator_that_dies_after_its_own_password_has_changed_gets_in_again(
    operated_alone: Place,
):
    operated = operated_alone
    await running(operated, door=Deaf)

    async def is_out() -> bool:
        return not await opens(operated, 1) and await opens(operated, 2)

    await until(is_out, 30)
    await operated.kill()
    assert await used(operated) == 1

    await operated.start()
    await operated.apply_tenant("late", apiKeys=[])
    await operated.ready("LogTenant", "late")
    assert await used(operated) == 2
    await operated.stop()
