"""What a pattern would cost, against a plain reading of it; and which patterns are served."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.serving.requests import RefusedError
from rayline.serving.requests.patterns import PatternCost, PatternError, check_pattern, pattern_cost
from support.asking import LIMITS, refused


@pytest.mark.parametrize(
    ("pattern", "positions", "loops", "loop_depth"),
    [
        ("", 0, 0, 0),
        ("abc", 3, 0, 0),
        ("a*", 1, 1, 1),
        ("(a*)*", 1, 2, 2),
        ("((a+)+)+", 1, 3, 3),
        ("a|b*|c", 3, 1, 1),
        ("a?b?", 2, 0, 0),
        ("a{3}", 3, 0, 0),
        ("a{2,5}", 5, 1, 1),
        ("((a{0,20}){0,20}){0,20}", 8000, 421, 3),
        ("a{2,}", 2, 1, 1),
        ("(a*){4}", 4, 4, 1),
        ("(a{1000}){1000}", 1_000_000, 0, 0),
        (r"\d{3}-\d{4}", 8, 0, 0),
        (r"[a-z0-9._%+-]+@[a-z0-9.-]+\.[a-z]{2,}", 6, 3, 1),
        (r"[^\]\\]*", 1, 1, 1),
        (r"\u00e9\x41\p{Lu}\{", 4, 0, 0),
        (r"(?:ab)+?c", 3, 1, 1),
    ],
)
def test_a_pattern_is_counted_with_its_repetitions_written_out(
    pattern, positions, loops, loop_depth
):
    assert pattern_cost(pattern) == PatternCost(positions, loops, loop_depth)


@pytest.mark.parametrize(
    "pattern",
    [
        *("(", ")", "a)", "(a", "[a", "*a", "+", "a{", "{", "a{x}", "a{5,2}", "a{,3}", "a\\", "|*"),
        *(r"(a)\1", r"\k<a>", "(?=a)", "(?!a)", "(?<=a)", "(?<!a)", "(?P<a>b)", "(?i)a", "(?#a)"),
        *("(" * 33 + ")" * 33, "a{1234567}", r"\0", r"\p{", "a\\\nb"),
    ],
)
def test_what_the_engine_cannot_follow_is_no_pattern(pattern):
    with pytest.raises(PatternError):
        pattern_cost(pattern)


@pytest.mark.parametrize(
    ("pattern", "code"),
    [
        ("((a*)*)*", "pattern_too_complex"),
        ("(((a+)+)+)+", "pattern_too_complex"),
        ("a*" * 33, "pattern_too_complex"),
        ("(a*){33}", "pattern_too_complex"),
        ("(a{200}){200}", "pattern_too_complex"),
        ("((a{0,9}){0,9}){0,9}", "pattern_too_complex"),
        ("a{999999}", "pattern_too_complex"),
        ("(?=a)b", "invalid_value"),
        ("a\x00b", "invalid_value"),
        ("x" * 2049, "string_above_max_length"),
        (7, "invalid_type"),
    ],
)
def test_a_pattern_that_would_hold_up_the_engine_is_refused(pattern, code):
    found = refused({"structured_outputs": {"regex": pattern}})
    assert (found.param, found.code) == ("structured_outputs.regex", code)


@pytest.mark.parametrize(
    "pattern",
    [
        r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})$",
        r"[A-Z][a-z]+( [A-Z][a-z]+)*",
        r"https?://[a-z0-9.-]+(:\d+)?(/[^\s?]*)?(\?[^\s]*)?",
        r"(\d+,)*\d+",
        r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        r"(25[0-5]|2[0-4]\d|1?\d?\d)(\.(25[0-5]|2[0-4]\d|1?\d?\d)){3}",
        r".{0,500}",
        r"([a-z]{1,10} ){1,20}",
    ],
)
def test_patterns_that_people_write_are_served(pattern):
    check_pattern(pattern, LIMITS.max_pattern_chars, "regex")


PLAIN_PATTERNS = st.recursive(
    st.sampled_from(["a", "b", ".", r"\d", "[ab]"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("|".join).map("({})".format),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}"])).map(
            lambda parts: f"(?:{parts[0]}){parts[1]}"
        ),
    ),
    max_leaves=12,
)


@given(PLAIN_PATTERNS)
def test_whatever_python_reads_of_these_is_read_alike(pattern):
    re.compile(pattern)
    cost = pattern_cost(pattern)
    assert cost.loops >= cost.loop_depth
    assert cost.positions >= len(re.findall(r"[ab.](?![^\[]*\])|\\d|\[ab\]", pattern)) > 0


@given(st.text(alphabet="ab()[]{}*+?|\\^$.,-0123456789:=!<>PdwkpuL", max_size=60))
def test_no_text_brings_the_reading_down(pattern):
    try:
        check_pattern(pattern, LIMITS.max_pattern_chars, "regex")
    except RefusedError as found:
        assert found.refusal.status == 400  # noqa: PT017 - either outcome will do


@pytest.mark.parametrize(
    "pattern", ["(" * 2048, "a{9}" * 512, "[" * 2048, "(a|" * 682, "\\" * 2048, "[a\\" * 682]
)
def test_reading_takes_no_time(pattern):
    began_s = time.process_time()
    refused({"structured_outputs": {"regex": pattern + ")"}}, max_pattern_chars=4096)
    assert time.process_time() - began_s < 0.2
