"""The tree of a LogQL query. Each node knows where it stands in the text (`at`, from 0)."""

from __future__ import annotations

from typing import Literal

import msgspec

MatchOperator = Literal["=", "!=", "=~", "!~"]
FilterOperator = Literal["|=", "!=", "|~", "!~"]


class Matcher(msgspec.Struct, frozen=True):
    """A condition on one label. A label that a record does not have counts as empty."""

    name: str
    operator: MatchOperator
    value: str
    at: int


class LineFilter(msgspec.Struct, frozen=True):
    """A condition on the message: one of `values` is in it (`|=`, `|~`), or none is."""

    operator: FilterOperator
    values: tuple[str, ...]
    at: int

    @property
    def is_regex(self) -> bool:
        """Whether the values are regular expressions."""
        return self.operator in ("|~", "!~")

    @property
    def is_negated(self) -> bool:
        """Whether records with a match are left out."""
        return self.operator in ("!=", "!~")


class Query(msgspec.Struct, frozen=True):
    """A whole query: all matchers and all filters must hold."""

    matchers: tuple[Matcher, ...]
    filters: tuple[LineFilter, ...]
