"""LogQL: what is understood, as what; what is refused, where and why; nothing else happens."""

from __future__ import annotations

import random

import msgspec
import pytest
import re2
from hypothesis import example, given, settings
from hypothesis import strategies as st

from logweir.core import errors
from logweir.core.logql import parser, tree


def matcher(name: str, operator: str, value: str, at: int = 0) -> tree.Matcher:
    return tree.Matcher(name, operator, value, at)


def line(operator: str, *values: str, at: int = 0) -> tree.LineFilter:
    return tree.LineFilter(operator, values, at)


def without_places(query: tree.Query) -> tree.Query:
    """The tree as if every node stood at 0."""
    return tree.Query(
        tuple(msgspec.structs.replace(one, at=0) for one in query.matchers),
        tuple(msgspec.structs.replace(one, at=0) for one in query.filters),
    )


# ---- what is understood ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "matchers", "filters"),
    [
        ("{}", [], []),
        (" { } ", [], []),
        ('{a="b"}', [matcher("a", "=", "b", 1)], []),
        ('{a!="b"}', [matcher("a", "!=", "b", 1)], []),
        ('{a=~"b|c"}', [matcher("a", "=~", "b|c", 1)], []),
        ('{a!~"b.*"}', [matcher("a", "!~", "b.*", 1)], []),
        ('{a=""}', [matcher("a", "=", "", 1)], []),
        ('{a="b",}', [matcher("a", "=", "b", 1)], []),
        ('{a="b",c="d"}', [matcher("a", "=", "b", 1), matcher("c", "=", "d", 7)], []),
        ('{ a = "b" , c = "d" }', [matcher("a", "=", "b", 2), matcher("c", "=", "d", 12)], []),
        ('{a="b",a="c"}', [matcher("a", "=", "b", 1), matcher("a", "=", "c", 7)], []),
        (
            '{k8s.pod-name/x_1="b"}',
            [matcher("k8s.pod-name/x_1", "=", "b", 1)],
            [],
        ),
        ('{"a b"="c"}', [matcher("a b", "=", "c", 1)], []),
        ('{`a-`="c"}', [matcher("a-", "=", "c", 1)], []),
        ("{or=`x`}", [matcher("or", "=", "x", 1)], []),
        ('{} |= "x"', [], [line("|=", "x", at=3)]),
        ('{}|="x"', [], [line("|=", "x", at=2)]),
        ('{} != "x"', [], [line("!=", "x", at=3)]),
        ('{} |~ "x+"', [], [line("|~", "x+", at=3)]),
        ('{} !~ "x+"', [], [line("!~", "x+", at=3)]),
        ('{} |= ""', [], [line("|=", "", at=3)]),
        (
            '{} |= "a" != "b" |~ "c" !~ "d"',
            [],
            [
                line("|=", "a", at=3),
                line("!=", "b", at=10),
                line("|~", "c", at=17),
                line("!~", "d", at=24),
            ],
        ),
        ('{} |= "a" or "b" or `c`', [], [line("|=", "a", "b", "c", at=3)]),
        ('{} |~ "a+" or "b+"', [], [line("|~", "a+", "b+", at=3)]),
        ('{} |= "or"', [], [line("|=", "or", at=3)]),
        ('{} |= "a" # |= "b"', [], [line("|=", "a", at=3)]),
        ('# first\n{} # then\n|= "a"', [], [line("|=", "a", at=18)]),
        ("{}\r\n\t|= `a`", [], [line("|=", "a", at=5)]),
        (r"{} |= `a\n\`", [], [line("|=", r"a\n" + "\\", at=3)]),
        ("{} |= `two\nlines`", [], [line("|=", "two\nlines", at=3)]),
        (r'{} |= "a\n\t\"\\\x41\u00e4\U0001f332\101\0001"', [], None),
        ('{} |= "grüß 🪵"', [], [line("|=", "grüß 🪵", at=3)]),
        ('{} |= "it\'s"', [], [line("|=", "it's", at=3)]),
    ],
)
def test_a_query_is_understood(text, matchers, filters):
    if filters is None:
        filters = [line("|=", 'a\n\t"\\A\xe4\N{EVERGREEN TREE}A\x001', at=3)]

    assert parser.parse(text) == tree.Query(tuple(matchers), tuple(filters))


@pytest.mark.parametrize(
    ("operator", "is_regex", "is_negated"),
    [("|=", False, False), ("!=", False, True), ("|~", True, False), ("!~", True, True)],
)
def test_a_filter_knows_what_its_operator_means(operator, is_regex, is_negated):
    (found,) = parser.parse(f"{{}} {operator} `x`").filters

    assert (found.is_regex, found.is_negated) == (is_regex, is_negated)


# ---- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "at", "problem", "hint"),
    [
        ("", 0, "Expected a stream selector in braces, found the end of the query", "{service="),
        ("  ", 2, "Expected a stream selector in braces, found the end", "{service="),
        ("error", 0, "Expected a stream selector in braces, found 'error'", "{service="),
        ('|= "x"', 0, "Expected a stream selector", "{service="),
        ("{", 1, "Expected a label's name or '}', found the end of the query", ""),
        ("{\n", 2, "(line 2, column 1)", ""),
        ("{a", 2, "Expected =, !=, =~ or !~ after the label 'a', found the end", ""),
        ("{a=", 3, "Expected a string after =, found the end of the query", "`...`"),
        ("{a=b}", 3, "Expected a string after =, found 'b}'", "`...`"),
        ("{a='b'}", 3, "Expected a string after =", "`...`"),
        ('{a=="b"}', 3, "Expected a string after =, found '=\"b\"}'", ""),
        ('{a~"b"}', 2, "Expected =, !=, =~ or !~ after the label 'a'", ""),
        ('{a="b" c="d"}', 7, "Expected ',' or '}', found 'c=\"d\"}'", "commas"),
        ('{,a="b"}', 1, "Expected a label's name or '}'", ""),
        ('{a="b",,}', 7, "Expected a label's name or '}'", ""),
        ('{1a="b"}', 1, "Expected a label's name or '}'", ""),
        ('{a-="b"}', 2, "Expected =, !=, =~ or !~ after the label 'a', found '-=\"b\"}'", ""),
        ('{a="b"}}', 7, "Expected a line filter or the end, found '}'", "line filter is"),
        ('{} "x"', 3, "Expected a line filter or the end", "line filter is"),
        ("{} | json", 3, "Expected a line filter or the end", "Parsers, label filters and metrics"),
        ('{} |== "x"', 5, "Expected a string after |=", ""),
        ('{} |= "a" or', 12, "Expected a string after |=, found the end", ""),
        ('{} |= "a" or |= "b"', 13, "Expected a string after |=", ""),
        ('{} |= "a" "b"', 10, "Expected a line filter or the end", ""),
        ('{} |= "a" orange', 10, "Expected a line filter or the end", ""),
        ('{} |= "a', 6, "This string has no end", ""),
        ('{} |= "a\n"', 6, "This string has no end", ""),
        ('{} |= "a\\', 6, "This string has no end", ""),
        ('{} |= "a\\"', 6, "This string has no end", ""),
        ("{} |= `a", 6, "This string has no end", ""),
        (r'{} |= "a\d"', 8, r"'\\d' is not an escape", "`...`"),
        (r'{} |= "\x4"', 7, "is not an escape", ""),
        (r'{} |= "\ud800"', 7, "is not an escape", ""),
        (r'{} |= "\U00110000"', 7, "is not an escape", ""),
        (r'{} |= "\08"', 7, "is not an escape", ""),
        (
            '{} |~ "a("',
            6,
            "The regular expression is not one of RE2's: missing ): a(",
            "Look-arounds",
        ),
        ('{} |~ "ok" or "(?=a)"', 14, "not one of RE2's: invalid perl operator: (?=", "Look-aro"),
        (r"{} !~ `(a)\1`", 6, r"not one of RE2's: invalid escape sequence: \1", ""),
        ('{a=~"*"}', 4, "not one of RE2's: no argument for repetition operator: *", ""),
        ('{a=~"b)(c"}', 4, "not one of RE2's", ""),
        (r"{a=~`\Qb`}", 4, "not one of RE2's", ""),
        (r"{} |~ `\pL{1000}`", 6, "not one of RE2's: pattern too large", ""),
        ("{}\n# a comment\n  |= x", 20, "(line 3, column 6)", ""),
        ("{} |= \x0b", 6, "(line 1, column 7)", ""),
        ("{}\u2028\n\u2028", 2, "(line 1, column 3)", ""),
        ('{} |= "\ud800"', 7, "half a character", ""),
        ("sum(rate({}[1m]))", 0, "Expected a stream selector", "{service="),
    ],
)
def test_what_is_no_query_is_refused_with_its_place(text, at, problem, hint):
    with pytest.raises(parser.QueryError) as caught:
        parser.parse(text)

    error = caught.value
    assert error.at == at
    assert problem in error.message
    assert hint in error.hint
    assert (error.status, error.code) == (400, "bad_query")


def test_an_error_can_be_shown_under_its_line():
    with pytest.raises(parser.QueryError) as caught:
        parser.parse('{}\n|= "grüß" | json\n# end')

    assert caught.value.picture == '|= "grüß" | json\n          ^'


# ---- laws ------------------------------------------------------------------------------------

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAME = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*([./-]+[A-Za-z0-9_]+)*", fullmatch=True) | ANY_TEXT
REGEX = st.sampled_from(["a+", "(a|b)*", "^a$", r"\d{3}", "(?i)warn", "", "[^x]", "é."]) | (
    ANY_TEXT.map(lambda text: re2.escape(text.replace("\0", "")))
)
PLAIN_MATCHER = st.builds(matcher, NAME, st.sampled_from(["=", "!="]), ANY_TEXT)
REGEX_MATCHER = st.builds(matcher, NAME, st.sampled_from(["=~", "!~"]), REGEX)
PLAIN_FILTER = st.builds(
    lambda operator, values: line(operator, *values),
    st.sampled_from(["|=", "!="]),
    st.lists(ANY_TEXT, min_size=1, max_size=3),
)
REGEX_FILTER = st.builds(
    lambda operator, values: line(operator, *values),
    st.sampled_from(["|~", "!~"]),
    st.lists(REGEX, min_size=1, max_size=3),
)
QUERY = st.builds(
    tree.Query,
    st.lists(PLAIN_MATCHER | REGEX_MATCHER, max_size=3).map(tuple),
    st.lists(PLAIN_FILTER | REGEX_FILTER, max_size=3).map(tuple),
)
ESCAPES = {"\a": "a", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t", "\v": "v"} | {
    "\\": "\\",
    '"': '"',
}


class Printer:
    """Writes a query as text, in one of the ways in which it can be written."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def query(self, of: tree.Query) -> str:
        parts = ["{"]
        for at, one in enumerate(of.matchers):
            parts += [self._name(one.name), one.operator, self._string(one.value)]
            is_last = at == len(of.matchers) - 1
            parts += ["," * (self._chance.random() < 0.5 if is_last else True)]
        parts.append("}")
        for one in of.filters:
            parts += [one.operator, self._string(one.values[0])]
            for value in one.values[1:]:
                parts += [" or", self._string(value)]
        return "".join(self._space() + part for part in parts) + self._space()

    def _space(self) -> str:
        return self._chance.choice(["", "", " ", "\n", "\t \r\n", "# a | comment }\n"])

    def _name(self, name: str) -> str:
        is_bare = parser._NAME.fullmatch(name) is not None
        return name if is_bare and self._chance.random() < 0.7 else self._string(name)

    def _string(self, text: str) -> str:
        if "`" not in text and self._chance.random() < 0.4:
            return f"`{text}`"
        return '"' + "".join(map(self._character, text)) + '"'

    def _character(self, one: str) -> str:
        if one in ESCAPES and (one in '\\"\n' or self._chance.random() < 0.7):
            return f"\\{ESCAPES[one]}"
        forms = [f"\\U{ord(one):08x}"]
        if ord(one) < 0x10000:
            forms.append(f"\\u{ord(one):04X}")
        if ord(one) < 0x100:
            forms += [f"\\x{ord(one):02x}", f"\\{ord(one):03o}"]
        return self._chance.choice(forms) if self._chance.random() < 0.2 else one


@settings(max_examples=300)
@given(QUERY, st.randoms(use_true_random=False))
def test_a_query_that_is_printed_is_read_as_the_same_tree(query, chance):
    text = Printer(chance).query(query)

    assert without_places(parser.parse(text)) == query


@given(QUERY, st.randoms(use_true_random=False))
def test_every_node_knows_where_it_stands(query, chance):
    text = Printer(chance).query(query)

    found = parser.parse(text)

    for one in found.matchers:
        assert text[one.at] in (one.name[:1], '"', "`")
    for one in found.filters:
        assert text[one.at :].startswith(one.operator)


PIECE = st.sampled_from(
    [
        "{",
        "}",
        ",",
        "=",
        "!=",
        "=~",
        "!~",
        "|=",
        "|~",
        "|",
        "a",
        "or",
        '"',
        "`",
        "\\",
        "(",
        "*",
        "#",
        '"b"',
        "`c`",
        '{a="b"}',
        "é",
        "\\x",
        "1",
    ]
) | st.sampled_from([" ", "\n", "\0", "\x0b", "\u2028", "\ud800"])


def outcome(text: str) -> tree.Query | errors.BadRequestError:
    """The tree of a query, or why it is refused."""
    try:
        return parser.parse(text)
    except errors.BadRequestError as error:
        return error


@settings(max_examples=500)
@given(st.text(max_size=60) | st.lists(PIECE, max_size=14).map("".join))
@example("{\n")
@example('{} |= "\x85\n')
@example("{a=~`\\C`}")
@example("{} |~ `[[:^alpha:]\udfff`")
def test_any_text_is_a_query_or_is_refused(text):
    found = outcome(text)

    if isinstance(found, errors.BadRequestError):
        assert 0 < len(str(found)) < 1000
        return
    # What was accepted can be run: every expression compiles as it will be used.
    for one in found.matchers:
        assert one.operator in ("=", "!=") or parser.compile_regex(one.value, anchored=True)
    for one in found.filters:
        assert not one.is_regex or [parser.compile_regex(v, anchored=False) for v in one.values]


@settings(max_examples=300)
@given(st.text(st.sampled_from("ab.*+?()[]{}|^$\\\\QEdpLPC:<=!-,19é\n\0"), max_size=14))
@example("(?P<a>b")
@example("\\")
@example("a\\Q")
@example("é**")
def test_any_regular_expression_is_taken_or_refused(pattern):
    raw = f"`{pattern}`"

    found = outcome(f"{{a=~{raw}}} |~ {raw}")

    if isinstance(found, parser.QueryError):
        assert found.at in (4, 9 + len(raw))
    else:
        assert parser.compile_regex(found.matchers[0].value, anchored=True)


# ---- bounds ----------------------------------------------------------------------------------


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("{" * 60_000, id="braces"),
        pytest.param('{a="' + "b" * 60_000, id="a string without an end"),
        pytest.param('{a="' + "\\" * 60_000, id="a string of backslashes"),
        pytest.param("{" + "a-" * 30_000, id="a name without an end"),
        pytest.param("{a" + "-" * 60_000, id="a name of dashes"),
        pytest.param(" #\n" * 20_000, id="comments"),
        pytest.param('{} |~ "' + "(" * 60_000 + '"', id="groups without an end"),
        pytest.param('{} |~ "' + "a{1000}" * 8000 + '"', id="repetitions"),
        pytest.param('{} |~ "' + "[" * 60_000 + '"', id="classes"),
        pytest.param("{} " + "|~ `x` " * 5000, id="expressions"),
        pytest.param("{}" + "".join(f"|~`[^{at}]+`" for at in range(4000)), id="other expressions"),
        pytest.param("{} |~ `" + r"\pL{90}" * 2 + "`", id="a program too large"),
        pytest.param("{" + "a=~`x`," * 8000 + "}", id="matchers"),
    ],
)
def test_a_query_beyond_all_bounds_is_refused_in_time(text):
    with pytest.raises(errors.BadRequestError) as caught:
        parser.parse(text)

    assert len(str(caught.value)) < 1000


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("{}" + "|=`x`" * 10_000, id="many filters"),
        pytest.param("{} |= `x`" + " or `x`" * 9000, id="many alternatives"),
        pytest.param("{" + "a=`x`," * 9000 + "}", id="many matchers"),
        pytest.param("{} # " + "x" * 60_000, id="a long comment"),
        pytest.param('{} |~ "' + "(" * 20_000 + ")" * 20_000 + '"', id="empty groups"),
        pytest.param('{} |~ "' + "(?:a" * 9000 + ")*" * 9000 + '"', id="groups of groups"),
        pytest.param("{} |= `" + "x" * 60_000 + "`", id="a long literal"),
        pytest.param("{} |~ `" + "|".join(f"id-{at}" for at in range(6000)) + "`", id="choices"),
        pytest.param("{} " + "|~ `x` " * parser.MAX_REGEXES, id="as many expressions as may be"),
    ],
)
def test_a_long_query_within_bounds_is_understood(text):
    assert parser.parse(text)


@pytest.mark.parametrize("character", ["x", "é", "🪵"])
def test_a_query_is_as_long_as_its_bytes(character):
    size = len(character.encode())
    room = parser.MAX_QUERY_BYTES - len("{} #")

    assert parser.parse("{} #" + character * (room // size))
    with pytest.raises(errors.BadRequestError, match="longer than"):
        parser.parse("{} #" + character * (room // size + 1))


# ---- regular expressions ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "text", "whole", "part"),
    [
        ("b|c", "b", True, True),
        ("b|c", "abc", False, True),
        ("a.c", "a\nc", True, True),
        ("(?i)WARN", "warn", True, True),
        ("", "", True, True),
        ("", "a", False, True),
        ("(a)(b)", "ab", True, True),
        ("é", "caf\xe9", False, True),
    ],
)
def test_an_expression_of_a_label_matches_the_whole_and_of_a_line_any_part(
    pattern, text, whole, part
):
    anchored = parser.compile_regex(pattern, anchored=True)
    free = parser.compile_regex(pattern, anchored=False)

    assert (anchored.search(text.encode()) is not None) == whole
    assert (free.search(text.encode()) is not None) == part
