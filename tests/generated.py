"""Records, columns and blocks for property tests, and plain ways to look at them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import msgspec
import numpy as np
from hypothesis import strategies as st

from logweir.core import block, columns, record
from logweir.core.columns import Columns
from logweir.core.record import Labels

INT64 = st.integers(-(2**63), 2**63 - 1)
COUNT = st.integers(0, 2**40)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
UUID = st.binary(min_size=16, max_size=16)
LABELS = st.dictionaries(st.sampled_from(["service", "level", "host", "x"]), TEXT, max_size=3).map(
    record.labels
)
HEX = "0123456789abcdef"
HEX_ID = st.one_of(
    st.just(""),
    st.text(HEX, min_size=8, max_size=8),
    st.text(HEX, min_size=32, max_size=32),
    st.text(HEX, max_size=64),
)
OBJECT = st.one_of(
    st.just(b""), st.dictionaries(TEXT, TEXT | INT64, max_size=2).map(msgspec.json.encode)
)


class Row(msgspec.Struct, frozen=True, order=True):
    """One record with everything that columns keep of it."""

    time_ns: int
    block: int
    index: int
    labels: Labels
    message: str
    trace: str = ""
    span: str = ""
    attributes: bytes = b""
    extra: bytes = b""
    flags: int = 0


ROW = st.builds(
    Row,
    time_ns=INT64,
    block=st.integers(0, 2**64 - 1),
    index=st.integers(0, 2**32 - 1),
    labels=LABELS,
    message=TEXT,
    trace=HEX_ID | TEXT,
    span=HEX_ID,
    attributes=OBJECT,
    extra=OBJECT,
    flags=st.integers(0, 255),
)


def to_columns(of: Sequence[Row]) -> Columns:
    """Return the records as columns."""
    label_sets = tuple(dict.fromkeys(row.labels for row in of))
    return Columns(
        n=len(of),
        time_ns=np.array([row.time_ns for row in of], np.int64),
        label_set=np.array([label_sets.index(row.labels) for row in of], np.uint32),
        label_sets=label_sets,
        message=columns.join([row.message.encode() for row in of]),
        trace=columns.join([row.trace.encode() for row in of]),
        span=columns.join([row.span.encode() for row in of]),
        attributes=columns.join([row.attributes for row in of]),
        extra=columns.join([row.extra for row in of]),
        flags=np.array([row.flags for row in of], np.uint8),
        block=np.array([row.block for row in of], np.uint64),
        index=np.array([row.index for row in of], np.uint32),
    )


def to_rows(of: Columns) -> list[Row]:
    """Return the records of columns, in their order."""
    texts = {name: columns.split(getattr(of, name), of.n) for name in columns.TEXTS}
    return [
        Row(
            time_ns=int(of.time_ns[at]),
            block=int(of.block[at]),
            index=int(of.index[at]),
            labels=of.label_sets[int(of.label_set[at])],
            message=texts["message"][at].decode(),
            trace=texts["trace"][at].decode(),
            span=texts["span"][at].decode(),
            attributes=texts["attributes"][at],
            extra=texts["extra"][at],
            flags=int(of.flags[at]),
        )
        for at in range(of.n)
    ]


@st.composite
def parts(draw: st.DrawFn, max_records: int = 4) -> block.Part:
    """The records of one request; some of the optional lists are left out."""
    n = draw(st.integers(0, max_records))
    label_sets = draw(st.lists(LABELS, unique=True, min_size=min(n, 1), max_size=3))

    def some(values: st.SearchStrategy, *, optional: bool = True) -> list:
        kept = st.lists(values, min_size=n, max_size=n)
        return draw(kept | st.just([]) if optional else kept)

    return block.part(
        times_ns=some(INT64, optional=False),
        label_set=some(st.integers(0, max(0, len(label_sets) - 1)), optional=False),
        label_sets=label_sets,
        messages=some(TEXT, optional=False),
        traces=some(HEX_ID),
        spans=some(HEX_ID),
        attributes=some(OBJECT),
        flags=some(st.integers(0, 255)),
        extras=some(OBJECT),
    )


@st.composite
def requests(draw: st.DrawFn) -> tuple[block.Request, block.Part]:
    """One request of a block, with its records."""
    part = draw(parts())
    made = block.Request(
        records=part.n,
        expired=draw(COUNT),
        size_bytes=draw(COUNT),
        fingerprint=draw(INT64),
        key=draw(st.just(b"") | UUID),
        producer=draw(st.just(b"") | UUID),
        epoch=draw(COUNT),
        sequence=draw(COUNT),
    )
    return made, part


def part_texts(of: block.Part) -> dict[str, list[bytes]]:
    """Return the texts of each column of a part."""
    return {name: columns.split(getattr(of, name), of.n) for name in columns.TEXTS}


def part_rows(of: Sequence[block.Part], short: int) -> list[Row]:
    """Return the records that a block of these parts holds; `short` is its id's short form."""
    rows: list[Row] = []
    for part in of:
        texts = part_texts(part) if part.n else {}
        flags = part.flags or bytes(part.n)
        for at, (time_ns, label_set) in enumerate(
            zip(array("q", part.times), array("I", part.label_set), strict=True)
        ):
            rows.append(
                Row(
                    time_ns=time_ns,
                    block=short,
                    index=len(rows),
                    labels=part.label_sets[label_set],
                    message=texts["message"][at].decode(),
                    trace=texts["trace"][at].decode(),
                    span=texts["span"][at].decode(),
                    attributes=texts["attributes"][at],
                    extra=texts["extra"][at],
                    flags=flags[at],
                )
            )
    return rows
