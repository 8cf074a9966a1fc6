"""One pass over one resource: its children, its replicas, its status, its events.

    key -> facts + cache -> manifests -> apply, prune -> scale -> status -> events

Every pass may be cut off anywhere and is done again. What it cannot do it says on the object.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from logweir.core import binding
from logweir.core.errors import LogweirError
from logweir.runtime import metrics
from logweir_operator import bindings, events, manifest, manifests, resources, status
from logweir_operator.apply import Applied, Children, ForeignObjectError, PredecessorError
from logweir_operator.cache import FINALIZER, Cache, Watched
from logweir_operator.config import Config
from logweir_operator.kube import RESOURCES, STATUS_MANAGER, Kube, KubeError, Object, kind_of
from logweir_operator.model import LogPipeline, LogTenant
from logweir_operator.queue import Again, FailedError
from logweir_operator.resources import Key
from logweir_operator.scaler import Scaler
from logweir_operator.turns import Facts, Turns

logger = logging.getLogger(__name__)

ABANDON: Final = "logweir.dev/abandon-external"
RECONCILE_AT: Final = "logweir.dev/reconcile-at"

QUIET_STATUS_S: Final = 60.0
"""How often a status is written of which only measurements have changed."""

PROGRESS_S: Final = 5.0
"""When children are looked at again while they start; their events come before that."""

PREDECESSOR_S: Final = 2.0


class Problem(msgspec.Struct, frozen=True):
    """Why a pass did not reach its end: a reason of the closed list."""

    reason: str
    message: str
    is_stalled: bool = False
    after_s: float = 0.0
