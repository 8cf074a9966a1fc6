"""Every bound on what comes in, each with its reason. Over a bound is refused and named, never cut.

A bound that is raised here must be looked at in `gateway` (the body's size) and in the journal
(`max_entry`), which hold the same bytes.
"""

from __future__ import annotations

MIB = 1 << 20

MAX_BODY_BYTES = 8 * MIB
"""Compressed body of a request. A larger one blocks other senders of the same process for long."""

MAX_DECODED_BYTES = 32 * MIB
"""Body after decompression; stops gzip and zstd bombs before they take memory."""

MAX_RECORDS = 20_000
"""Records in a request; a block must fit into one segment of a collector's batch."""

MAX_RECORD_BYTES = 1 * MIB
"""One record as it was sent. A dashboard row of more is not readable, and one flood of them is."""

MAX_JSON_DEPTH = 32
"""Nesting of a record. Deeper JSON is an attack on parsers far more often than a log."""

MAX_LABELS = 32
"""Labels of a record, `service` and `level` among them."""

MAX_LABEL_NAME_BYTES = 64
"""A label's name; it stands in every segment that has it."""

MAX_LABEL_VALUE_BYTES = 256
"""A label's value. Longer values are content, not the name of a source."""

MAX_ATTRIBUTES = 512
"""Keys of the attributes object, on its first level."""

MAX_IDEMPOTENCY_KEY_BYTES = 256
"""An `Idempotency-Key`; it is hashed, so only the header's size counts."""

MAX_OLD_DAYS = 8
"""Different UTC days older than two days in one request: each day may open a partition."""

OLD_DAY_AGE_DAYS = 2
"""From which age a record's day counts against `MAX_OLD_DAYS`."""

MAX_FUTURE_NS = 10 * 60 * 1_000_000_000
"""How far ahead of arrival a timestamp may lie; beyond it the arrival time is taken, flagged."""

BODY_TIMEOUT_S = 30.0
"""How long a sender may take to send a body; a stalled one holds memory."""

MAX_PRODUCER_RANGES = 1024
"""Ranges of seen numbers of one producer, before a number goes to `ledger` instead."""

MAX_LABEL_SETS = 4096
"""Different label sets in one request; more means an id has been made a label."""

STORED_LOOK_S = 30.0
"""How often the keeper looks at a tenant that has stored too much: its senders wait for so long."""

STORED_READ_S = 2.0
"""How often the operator reads what keepers have noted of that, for the journals to know."""
