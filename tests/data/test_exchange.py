"""Halves of guided steps swapped over real sockets."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest

from stage_server.data.consumer import MAX_ASKED_AHEAD, Consumer, TooManyFetches
from stage_server.data.exchange import LONGEST_WAIT, Exchange
from stage_server.data.holder import MAX_KEPT, Holder
from stage_server.data.mailbox import MOST_LEFT, MOST_WORDS, Mailbox
from wire.bundle import Bundle, pack, unpack
from wire.errors import InputLost, Loss
from wire.to_stage import Half, InputRef
from wire.types import Handle

BOUND = 20.0
ONE, OTHER = Handle("ab" * 16), Handle("cd" * 16)


class Side:
    """One of two servers."""

    def __init__(self, holding: Callable[..., Holder], consuming: Callable[..., Consumer]) -> None:
        self.mailbox = Mailbox()
        self.holder = holding(self.mailbox.get)
        self.mailbox.on_put = self.holder.look_again
        self.consumer = consuming(local=self.mailbox.get)


@pytest.fixture
def sides(holding: Any, consuming: Any) -> tuple[Side, Side]:
    return Side(holding, consuming), Side(holding, consuming)


def exchange(own: Side, other: Side, *, leads: bool) -> Exchange:
    mine, theirs = (ONE, OTHER) if leads else (OTHER, ONE)
    half = Half(handle=mine, partner=InputRef(handle=theirs, endpoint=other.holder.endpoint), leads=leads)
    return Exchange(half, own.mailbox, own.consumer)


@pytest.fixture
def pair(sides: tuple[Side, Side]) -> tuple[Exchange, Exchange]:
    return exchange(*sides, leads=True), exchange(*reversed(sides), leads=False)


@pytest.fixture
def beside() -> Any:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit


def test_each_gets_what_the_other_computed_and_little_is_kept(
    sides: tuple[Side, Side], pair: tuple[Exchange, Exchange], beside: Any
) -> None:
    def steps(one: Exchange, name: str) -> list[Any]:
        taken = []
        for step in range(1, 21):
            one.give(step, {"half": f"{name}{step}"})
            taken.append(one.take(step, BOUND))
        return taken

    leads, helps = pair
    other = beside(steps, helps, "b")
    assert steps(leads, "a") == [{"half": f"b{step}"} for step in range(1, 21)]
    assert other.result(BOUND) == [{"half": f"a{step}"} for step in range(1, 21)]
    assert [len(side.mailbox) for side in sides] == [1, 1]


def test_the_answer_waits_until_it_is_there(pair: tuple[Exchange, Exchange], beside: Any) -> None:
    leads, helps = pair
    taken = beside(leads.take, 1, BOUND)
    helps.give(1, {"half": 1})
    assert taken.result(BOUND) == {"half": 1}


def test_what_does_not_come_in_time_is_given_up(pair: tuple[Exchange, Exchange]) -> None:
    assert pair[0].take(1, 0.05) is None


def test_one_that_leaves_frees_the_other_at_once(pair: tuple[Exchange, Exchange], beside: Any) -> None:
    leads, helps = pair
    helps.give(1, {"half": 1})
    taken = beside(helps.take, 1, BOUND)
    leads.leave()
    assert taken.result(BOUND / 2) == {}
    assert beside(helps.take, 1, BOUND).result(BOUND / 2) == {}, "whoever asks later learns of it as well"


def test_one_that_leaves_need_not_wait_any_more(pair: tuple[Exchange, Exchange], beside: Any) -> None:
    began = Event()

    def take() -> Any:
        began.set()
        return pair[0].take(1, BOUND)

    taken = beside(take)
    assert began.wait(BOUND)
    pair[0].leave()
    assert taken.result(BOUND / 2) is None
    assert pair[0].take(2, BOUND) is None


def test_a_partner_that_is_gone_is_noticed(sides: tuple[Side, Side], beside: Any) -> None:
    leads = exchange(*sides, leads=True)
    taken = beside(leads.take, 1, BOUND)
    sides[1].holder.close()
    assert taken.result(BOUND / 2) is None


class Asked:
    """A consumer that notes what it is asked for, and brings what it is told to."""

    def __init__(self) -> None:
        self.fetches: dict[str, Future[Bundle]] = {}
        self.brings: dict[str, Any] | None = None
        """At once; None: nothing by itself."""
        self.is_full = False

    def fetch(self, ref: InputRef, deadline_seconds: float, wait_ms: int = 0) -> Future[Bundle]:
        if self.is_full:
            raise TooManyFetches
        fetch = self.fetches[ref.handle] = Future[Bundle]()
        if self.brings is not None:
            fetch.set_result(pack(self.brings))
        return fetch

    def has_missed(self, step: int) -> None:
        handle = Handle(f"{OTHER}.{step}")
        self.fetches.pop(handle).set_exception(InputLost(handle, Loss.MISSING))

    def steps(self) -> list[int]:
        return [int(handle.rpartition(".")[2]) for handle in self.fetches]


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def one(asked: Any) -> Exchange:
    half = Half(handle=ONE, partner=InputRef(handle=OTHER, endpoint="tcp://127.0.0.1:1"), leads=True)
    return Exchange(half, Mailbox(), asked)


def test_each_half_is_asked_for_once_before_the_own_one_is_computed(one: Exchange, asked: Asked) -> None:
    one.begin()
    for step in range(1, 4):
        assert asked.steps() == list(range(1, step + 1))
        one.give(step, {})
        asked.fetches[f"{OTHER}.{step}"].set_result(pack({"half": step}))
        assert one.take(step, BOUND) == {"half": step}


def test_one_that_there_was_no_room_to_ask_for_is_asked_for_when_it_is_due(one: Exchange, asked: Asked) -> None:
    asked.is_full = True
    one.begin()
    assert one.take(1, BOUND) is None
    asked.is_full, asked.brings = False, {"half": 1}
    assert one.take(1, BOUND) == {"half": 1}


def test_one_that_was_waited_for_long_enough_is_asked_for_again(
    one: Exchange, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("stage_server.data.exchange.monotonic", lambda: now[0])
    one.begin()
    now[0] += LONGEST_WAIT
    asked.has_missed(1)
    asked.brings = {"half": 1}
    assert one.take(1, BOUND) == {"half": 1}


def test_a_holder_that_waits_for_nothing_is_not_asked_again(one: Exchange, asked: Asked) -> None:
    one.begin()
    asked.has_missed(1)
    asked.brings = {"half": 1}
    assert one.take(1, BOUND) is None


def test_a_half_that_was_given_can_be_had_when_its_server_has_left(pair: tuple[Exchange, Exchange]) -> None:
    leads, helps = pair
    helps.give(1, {"half": 1})
    helps.leave()
    assert leads.take(1, BOUND) == {"half": 1}
    assert leads.take(2, BOUND) == {}


def test_who_waits_for_what_is_not_there_is_in_nobodys_way(sides: tuple[Side, Side]) -> None:
    """Sixteen jobs between one pair of servers, of which fifteen wait for halves that are yet to be computed."""
    own, other = sides
    output = Handle("ef" * 16)
    other.mailbox.put(output, pack({"latents": 1}))

    def begun(number: int) -> tuple[Exchange, Exchange]:
        mine, theirs = Handle(f"{number:032x}"), Handle(f"{100 + number:032x}")
        leads = Half(handle=mine, partner=InputRef(handle=theirs, endpoint=other.holder.endpoint), leads=True)
        helps = Half(handle=theirs, partner=InputRef(handle=mine, endpoint=own.holder.endpoint), leads=False)
        pair = Exchange(leads, own.mailbox, own.consumer), Exchange(helps, other.mailbox, other.consumer)
        pair[0].begin()
        return pair

    pairs = [begun(number) for number in range(16)]
    leads, helps = pairs[-1]
    helps.give(1, {"half": 1})
    assert leads.take(1, LONGEST_WAIT / 2) == {"half": 1}
    stored = own.consumer.fetch(InputRef(handle=output, endpoint=other.holder.endpoint), BOUND)
    assert unpack(stored.result(LONGEST_WAIT / 2)) == {"latents": 1}
    for number, (_, helps) in enumerate(pairs[:-1]):
        helps.give(1, {"half": number})
    assert [leads.take(1, BOUND) for leads, _ in pairs[:-1]] == [{"half": number} for number in range(15)]


def test_so_many_are_asked_for_ahead_and_no_more(sides: tuple[Side, Side]) -> None:
    own, other = sides
    refs = [InputRef(handle=Handle(f"{n:032x}"), endpoint=other.holder.endpoint) for n in range(MAX_ASKED_AHEAD + 1)]
    asked = [own.consumer.fetch(ref, BOUND, 9_000) for ref in refs]
    other.mailbox.put(refs[-1].handle, pack({"number": MAX_ASKED_AHEAD}))
    there = own.consumer.fetch(InputRef(handle=refs[-1].handle, endpoint=other.holder.endpoint), BOUND)
    assert unpack(there.result(BOUND)) == {"number": MAX_ASKED_AHEAD}
    assert not asked[-1].done(), "it was asked for before that, and has not been sent"
    for number, ref in enumerate(refs[:-1]):
        other.mailbox.put(ref.handle, pack({"number": number}))
    assert [unpack(each.result(BOUND)) for each in asked] == [{"number": n} for n in range(MAX_ASKED_AHEAD + 1)]


def test_halves_of_jobs_that_are_over_do_not_pile_up(asked: Any) -> None:
    mailbox = Mailbox()
    for number in range(2 * MOST_LEFT):
        half = Half(handle=Handle(f"{number:032x}"), partner=InputRef(handle=OTHER, endpoint="tcp://127.0.0.1:1"))
        exchange = Exchange(half, mailbox, asked)
        for step in (1, 2):
            exchange.give(step, {"half": step})
        exchange.leave()
    assert len(mailbox) == MOST_LEFT + 2 * 2 * MOST_LEFT, "a half of each, and words that there are no more"


def test_words_do_not_pile_up() -> None:
    mailbox = Mailbox()
    for number in range(2 * MOST_WORDS):
        mailbox.leave_word(Handle(f"{number:032x}"), pack({}))
    assert len(mailbox) == MOST_WORDS


def test_a_holder_waits_for_so_many_and_no_more(holding: Any, consuming: Any) -> None:
    """Who asks for more than it keeps hears at once that there is nothing; those kept hear it when their time is up."""
    held: dict[Handle, Any] = {}
    holder = holding(held.get)

    def asked(consumer: Consumer, number: int, wait_ms: int) -> Any:
        return consumer.fetch(InputRef(handle=Handle(f"{number:032x}"), endpoint=holder.endpoint), BOUND, wait_ms)

    consumers = [consuming() for _ in range(MAX_KEPT // 4)]  # of which each asks a holder for eight things at a time
    waiting = [asked(consumers[number // 4], number, 9_000) for number in range(MAX_KEPT)]
    for consumer in consumers:
        assert asked(consumer, 0, 0).exception(BOUND).reason is Loss.MISSING  # those before it have been read
    beyond = asked(consumers[-1], MAX_KEPT, 9_000).exception(BOUND / 4)
    assert isinstance(beyond, InputLost)
    held.update({Handle(f"{number:032x}"): pack({"number": number}) for number in range(MAX_KEPT)})
    holder.look_again()
    assert [unpack(each.result(BOUND)) for each in waiting] == [{"number": n} for n in range(MAX_KEPT)]
