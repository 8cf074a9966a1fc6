"""The right of who holds an `up`'s folder to administer its tenants: a key that lasts for minutes.

Its roots stand in the folder, so such a person may do everything; no admin key lies in a file.
"""

from __future__ import annotations

import secrets
import time
from typing import Final

from logweir.backends import control, provision, store
from logweir.core import errors, keys
from logweir.core.names import PipelineId
from logweir.standalone import listing
from logweir.standalone.folder import Folder
from logweir.standalone.up import site_of

KEY_LIFE_S: Final = 300


async def address(place: Folder, tenant: str) -> tuple[str, str]:
    """Return the URL of a running `up`, and an admin key of one of its tenants.

    Args:
        place: its folder.
        tenant: the LogTenant, as NAME or NAMESPACE/NAME; empty for the first one.

    Raises:
        NotFoundError: there is no such tenant.
    """
    namespace, _, name = tenant.rpartition("/")
    found = listing.tenant_keys(place, namespace or "default", name)
    site = site_of(place.read_secrets(), place.ports())
    door = control.Control(
        store.conninfo(site.store, site.login(provision.OPERATOR), "logweir cli")
    )
    try:
        rows = [one for one in await door.tenants() if one.id == found.tenant]
    finally:
        await door.close()
    if not rows:
        raise errors.NotFoundError(f"LogTenant {found.name!r} is not there any more.")
    key = keys.ApiKey(
        tenant=rows[0].id,
        key_id=secrets.randbits(63),
        pipeline=PipelineId(0),
        scopes=keys.SCOPE_ADMIN,
        expires_at_s=int(time.time()) + KEY_LIFE_S,
        revision=rows[0].access_revision,
    )
    return found.url, keys.text_of(key, site.sign_root(rows[0], key.revision))
