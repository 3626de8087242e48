from __future__ import annotations

import re
from itertools import accumulate

import pytest
from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.sources.braces import expand_braces
from schemas.errors import InputError


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("plain", ["plain"]),
        ("x-{008..011}.tar", ["x-008.tar", "x-009.tar", "x-010.tar", "x-011.tar"]),
        ("{a,b}/{1..2}", ["a/1", "a/2", "b/1", "b/2"]),
        ("p{2.{5..6},3}", ["p2.5", "p2.6", "p3"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{0..10..5}", ["0", "5", "10"]),
        ("{,-old}", ["", "-old"]),
        ("{x}", ["{x}"]),
        (r"\{1,2\}", ["{1,2}"]),
        (r"{\\,b}", ["\\", "b"]),
        (r"{a\\}", ["{a\\}"]),
    ],
)
def test_expands_as_bash_does(pattern: str, expected: list[str]) -> None:
    assert list(expand_braces(pattern)) == expected


_PIECES = st.sampled_from(["{", "}", ",", "..", "a", "z", "0", "07", "12", "-3", "\\", "x/", "{1..3}", "{a,b}", "."])


def _closes_first(pattern: str) -> bool:
    """A closing brace before its opening one, which braceexpand lets pass as literal text."""
    depths = accumulate({"{": 1, "}": -1}.get(char, 0) for char in re.sub(r"\\.", "", pattern))
    return min(depths, default=0) < 0


@given(st.lists(_PIECES, max_size=9).map("".join))
def test_agrees_with_braceexpand(pattern: str) -> None:
    assume(not re.search(r"\d{4}", pattern))  # no range of millions
    assume(r"\\" not in pattern)  # inside literal braces braceexpand takes them away twice
    try:
        expected = None if _closes_first(pattern) else list(braceexpand(pattern))
    except UnbalancedBracesError:
        expected = None
    if expected is None:
        with pytest.raises(InputError, match=r"source\.uri.*do not pair"):
            list(expand_braces(pattern))
        return
    assert list(expand_braces(pattern)) == expected


def test_a_million_shards_are_not_held() -> None:
    shards = expand_braces("s3://b/{00000000..99999999}.tar")
    assert next(shards) == "s3://b/00000000.tar"
    assert next(shards) == "s3://b/00000001.tar"
