"""Blocks that are not segments yet: which of their records match, and these as whole records. Pure.

payload -> decode() -> Columns -> matching_rows() -> rows -> Rows.records() -> tail.py, history.py
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from logweir.core import block, columns, errors, scan
from logweir.core.columns import Bools, Columns, Int64s
from logweir.core.names import PipelineId
from logweir.core.record import Labels, Record, RecordId
from logweir.query.plan import Plan


def decode(payload: bytes, repeats: frozenset[int]) -> Columns | None:
    """Return the records of a block without the requests that it repeats; None for no block."""
    try:
        header, records = block.decode(payload)
    except errors.FormatError:
        return None  # the collectors report it
    if not repeats:
        return records
    keep = np.ones(records.n, np.bool_)
    for index, where in enumerate(block.request_slices(header)):
        if index in repeats:
            keep[where] = False
    return columns.select(records, keep)


def matching_rows(plan: Plan, pipeline: PipelineId, records: Columns) -> Int64s:
    """Return which records match the query and are within its beginning and the retention."""
    low_ns = plan.lows_ns.get(pipeline)
    if low_ns is None or not records.n:
        return np.zeros(0, np.int64)
    accepted = np.fromiter(
        (plan.accepts(pipeline, labels) for labels in records.label_sets),
        np.bool_,
        len(records.label_sets),
    )
    keep: Bools = accepted[records.label_set] & (records.time_ns >= low_ns)
    if plan.lines and keep.any():
        texts = scan.Texts(records.message, records.n)
        for line in plan.lines:
            keep = line.keep(texts, keep)
    return np.flatnonzero(keep)


class Rows(msgspec.Struct, frozen=True, eq=False):
    """Some rows of a block."""

    pipeline: PipelineId
    block: Columns
    rows: Int64s

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, which: Int64s | Bools | slice) -> Rows:
        """Return the chosen ones."""
        return Rows(self.pipeline, self.block, self.rows[which])

    def compact(self) -> Rows:
        """Return the same rows without most of the block, when it holds far more than them."""
        if 2 * len(self.rows) > self.block.n:
            return self
        keep = np.zeros(self.block.n, np.bool_)
        keep[self.rows] = True
        return Rows(
            self.pipeline,
            columns.select(self.block, keep),
            np.arange(len(self.rows), dtype=np.int64),
        )

    def newest(self, count: int) -> Rows:
        """Return the last `count` of them in the order of records."""
        if len(self.rows) <= count:
            return self
        order = np.lexsort((self.block.index[self.rows], self.block.time_ns[self.rows]))
        return self.take(order[-count:])

    def ids(self) -> list[RecordId]:
        """Return their ids."""
        rows, one = self.rows, self.block
        parts = zip(
            one.time_ns[rows].tolist(),
            one.block[rows].tolist(),
            one.index[rows].tolist(),
            strict=True,
        )
        return [RecordId(*part) for part in parts]

    def records(self, plan: Plan) -> list[Record]:
        """Return them as whole records, in their order."""
        one = self.block
        texts = {name: scan.Texts(getattr(one, name), one.n) for name in columns.TEXTS}
        shown: dict[int, Labels] = {}
        found = []
        for row, record_id in zip(self.rows.tolist(), self.ids(), strict=True):
            at = int(one.label_set[row])
            if at not in shown:
                shown[at] = plan.shown(self.pipeline, one.label_sets[at])
            found.append(
                Record(
                    id=record_id,
                    labels=shown[at],
                    message=texts["message"].text(row).decode(),
                    trace_id=texts["trace"].text(row).decode(),
                    span_id=texts["span"].text(row).decode(),
                    attributes=texts["attributes"].text(row),
                    flags=int(one.flags[row]),
                    extra=texts["extra"].text(row),
                )
            )
        return found


def by_block(records: Columns, wanted: Sequence[int]) -> dict[int, Columns]:
    """Return the records of each of the wanted blocks, by the short form of its id."""
    keep = np.isin(records.block, np.array(wanted, np.uint64))
    if not keep.any():
        return {}
    some = columns.select(records, keep)
    order = np.argsort(some.block, kind="stable")
    ends = np.flatnonzero(np.diff(some.block[order])) + 1
    texts = {
        name: columns.split(getattr(some, name), some.n)
        for name in columns.TEXTS
        if getattr(some, name)
    }
    found = {}
    for rows in np.split(order, ends):
        picked = {
            name: columns.join([of[row] for row in rows.tolist()]) for name, of in texts.items()
        }
        found[int(some.block[rows[0]])] = Columns(
            n=len(rows),
            time_ns=some.time_ns[rows],
            label_set=some.label_set[rows],
            label_sets=some.label_sets,
            flags=some.flags[rows],
            block=some.block[rows],
            index=some.index[rows],
            **{name: picked.get(name, b"") for name in columns.TEXTS},
        )
    return found
