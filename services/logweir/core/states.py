"""The states of a tenant, as `logweir.tenants` has them; who may do what with a tenant in one.

    provisioning --> active <--> readonly          retained --adopted--> provisioning
                        |                              ^
                        v        deletionPolicy Retain |
                    refusing --> draining --> sealed --+--> tombstoned --> dropped --> deleted

`logweir_operator.life` decides the way from `refusing` on, and says what each step does.
"""

from __future__ import annotations

from typing import Final, Literal

TenantState = Literal[
    "provisioning",
    "active",
    "readonly",
    "refusing",
    "draining",
    "sealed",
    "tombstoned",
    "dropped",
    "retained",
    "deleted",
]

MADE: Final[tuple[TenantState, ...]] = ("active", "readonly")
"""Its place in the servers was made once, and its logins are good."""

LEAVING: Final[tuple[TenantState, ...]] = (
    "refusing",
    "draining",
    "sealed",
    "tombstoned",
    "dropped",
)
"""It is being deleted; whoever comes upon it goes on with that."""

COLLECTED: Final[tuple[TenantState, ...]] = (*MADE, "refusing", "draining")
"""What is in its journals is still stored."""
