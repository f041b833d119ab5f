"""A checker that complains of nothing proves nothing: it is shown each thing that must not be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.invariants import about_usage, complaints, tally
from tests.chaos.record import Asked, Attempt, End

GOOD = Attempt(0, 10.0, 11.0, End.ANSWERED, 200, request_id="req-1", content="aa", once="new")


def asked(*attempts: Attempt, number: int = 1, key: str = "key-1") -> Asked:
    return Asked(number, "plain", key, list(attempts), is_over=True)


def test_right_answers_are_right() -> None:
    refused = replace(GOOD, end=End.REFUSED, status=503, code="draining", request_id="req-0", content="")
    assert complaints([asked(refused, GOOD), asked(replace(GOOD, request_id="req-2"), number=2)], {}) == []


def test_a_lost_answer() -> None:
    broken = replace(GOOD, end=End.BROKEN, content="", request_id="")
    (complaint,) = complaints([asked(broken)], {0: [(12.0, 14.0)], 1: [(9.0, 14.0)]})
    assert "lost: broken after 1.0 s at gateway 0" in complaint
    assert complaints([asked(broken)], {0: [(10.5, 14.0)]}) == []


def test_a_request_that_never_ended() -> None:
    assert complaints([Asked(1, "plain", attempts=[GOOD])], {}) == ["request 1 (plain) never ended"]
    assert complaints([Asked(1, "plain", is_over=True)], {}) == ["request 1 (plain) never ended"]


def test_one_that_hung() -> None:
    (complaint,) = complaints([asked(replace(GOOD, end=End.HUNG, ended=99.0))], {0: [(0.0, 100.0)]})
    assert "hung: no answer after 89.0 s" in complaint


def test_a_doubled_answer() -> None:
    other = replace(GOOD, request_id="req-2", content="bb")
    (complaint,) = complaints([asked(GOOD, other)], {})
    assert "doubled: 2 answers for one Idempotency-Key differ" in complaint
    assert complaints([asked(GOOD, replace(other, content="aa"))], {}) == []
    assert complaints([asked(GOOD, replace(other, once="not-kept"))], {}) == []
    assert complaints([asked(GOOD, other, key="")], {}) == []


def test_a_doubled_stream_is_excused_where_its_answer_was_not_kept() -> None:
    """As the gateway's log says: the headers of a stream went out before it knew."""
    twice = asked(replace(GOOD, made_as="req-1"), replace(GOOD, request_id="req-2", made_as="req-2", content="bb"))
    assert complaints([twice], {}, unkept={"req-1"}), "it could have been said"
    twice.kind = "stream"
    assert complaints([twice], {})
    assert complaints([twice], {}, unkept={"req-1"}) == []
    assert complaints([twice], {}, killed=[(0, 12.0)]) == []
    assert complaints([twice], {}, killed=[(1, 12.0), (0, 10.5), (0, 30.0)])


def test_a_mixed_up_answer() -> None:
    (complaint,) = complaints([asked(GOOD), asked(GOOD, number=2)], {})
    assert "mixed up: requests [1, 2] all were req-1" in complaint
    (complaint,) = complaints([asked(replace(GOOD, complaints=("picture 0 is another's",)))], {})
    assert complaint == "request 1 (plain): picture 0 is another's"


@pytest.mark.parametrize(("status", "code"), [(400, "invalid_value"), (503, "invalid_value"), (502, ""), (404, "x")])
def test_an_error_that_blames_the_wrong_one(status: int, code: str) -> None:
    (complaint,) = complaints([asked(replace(GOOD, end=End.REFUSED, status=status, code=code))], {})
    assert f"{status} {code}" in complaint


def test_use_is_recorded_once() -> None:
    replayed = replace(GOOD, request_id="req-2", once="replayed")
    both = [asked(GOOD), asked(replayed, number=2)]
    assert about_usage(both, {"req-1": 1}, []) == []
    assert "not recorded" in about_usage(both, {}, [])[0]
    assert about_usage(both, {}, [(0, 10.0, 12.0)]) == []
    assert len(about_usage(both, {}, [(1, 10.0, 12.0), (0, 12.0, 14.0)])) == 1
    assert about_usage(both, {"req-1": 2}, []) == ["req-1 has 2 records of use"]


def test_endings_in_words() -> None:
    broken = replace(GOOD, end=End.BROKEN)
    ends = [asked(GOOD), asked(broken, GOOD), asked(broken), Asked(9, "plain")]
    assert tally(ends) == {
        "answered": 1,
        "answered, sent again": 1,
        "lost with its gateway (no Idempotency-Key)": 1,
        "never sent": 1,
    }
