"""Introductions, silence and losses as effects, on a manual clock."""

from __future__ import annotations

import pytest

from gateway.stages.liveness import (
    ASK_BURST,
    GATEWAYS,
    HELLO_BURST,
    HELLO_RATE,
    MAX_FORMS,
    MAX_FORMS_BYTES,
    MAX_REMEMBERED,
    OWN_BURST,
    OWN_RATE,
    SAY_HELLO_EVERY,
    Heard,
    Joined,
    Lost,
    PoolRules,
    Roster,
    Send,
    TellCell,
    Warn,
)
from wire.to_gateway import Ask, AskCell, Goodbye, Grant, Heartbeat, RolesReady
from wire.to_stage import Fine, HeartbeatAck, Refused, SayHello, Welcome
from wire.types import Epoch, Role, ServerId
from wire.version import PROTOCOL

A1, A2, B1 = ServerId("a/1"), ServerId("a/2"), ServerId("b/1")
GRANT = Grant(limits={Role.DIT: 3})


@pytest.fixture
def roster() -> Roster:
    return Roster(PoolRules("g1", heartbeat_seconds=2, liveness_seconds=10))


def join(roster, server, hello, now=0.0, **changes):
    name, incarnation = server.split("/")
    return roster.hear(server, hello(name, incarnation, **changes), now)


def refusal(effects) -> Refused:
    message = effects[0].message
    assert isinstance(message, Refused)
    assert not any(isinstance(effect, Joined) for effect in effects)
    return message


def test_a_hello_is_welcomed_before_anybody_may_send_work(roster, hello):
    welcome, joined = join(roster, A1, hello)
    assert welcome == Send(A1, Welcome(gateway="g1", heartbeat_seconds=2, liveness_seconds=10, joins=True))
    assert joined == Joined(A1, hello())


def test_heartbeats_are_acknowledged_and_the_rest_is_passed_on(roster, hello):
    join(roster, A1, hello)
    beat = Heartbeat(sequence=4, store_bytes=99)
    assert roster.hear(A1, beat, 1) == [Send(A1, HeartbeatAck(sequence=4))]
    assert roster.vitals() == {A1: beat}
    assert roster.hear(A1, GRANT, 2) == [Heard(A1, GRANT)]


def test_silence_is_counted_from_the_last_word(roster, hello):
    join(roster, A1, hello)
    join(roster, B1, hello)
    roster.hear(A1, GRANT, 6.0)
    assert roster.next_wakeup() == 10
    assert roster.tick(9.9) == []
    assert roster.tick(10.0) == [Lost(B1, "silent for 10 s")]
    assert roster.next_wakeup() == 16
    assert roster.tick(16.0) == [Lost(A1, "silent for 10 s")]
    assert roster.next_wakeup() is None


def test_a_gateway_that_stood_still_blames_nobody(roster, hello):
    join(roster, A1, hello)
    (warning,) = roster.tick(60.0)
    assert "stood still for 50.0 s" in warning.text
    assert roster.next_wakeup() == pytest.approx(62.0)
    assert roster.tick(62.0) == [Lost(A1, "silent for 10 s")]


def test_a_lost_server_that_speaks_again_is_asked_to_introduce_itself(roster, hello):
    join(roster, A1, hello)
    roster.tick(10.0)
    assert roster.hear(A1, GRANT, 11) == [Send(A1, SayHello())]
    assert roster.hear(A1, GRANT, 11 + SAY_HELLO_EVERY / 2) == [], "not again at once"
    assert roster.hear(A1, GRANT, 11 + SAY_HELLO_EVERY) == [Send(A1, SayHello())]
    assert join(roster, A1, hello, 13)[1] == Joined(A1, hello())


def test_goodbye_is_a_clean_end(roster, hello):
    join(roster, A1, hello)
    assert roster.hear(A1, Goodbye(), 1) == [Lost(A1, "it left", clean=True)]
    assert roster.lose(A1, "twice") == []


def test_a_second_hello_of_the_same_life_is_a_new_introduction(roster, hello):
    join(roster, A1, hello)
    effects = join(roster, A1, hello, 1, roles=(Role.DIT,))
    assert effects[1] == Joined(A1, hello(roles=(Role.DIT,)))
    assert roster.servers == (A1,)


def test_a_new_life_ends_the_old_one_at_once_and_for_good(roster, hello):
    join(roster, A1, hello)
    effects = join(roster, A2, hello, 1)
    assert effects[0] == Lost(A1, "a has started anew")
    assert effects[2] == Joined(A2, hello(incarnation="2"))
    assert roster.hear(A1, GRANT, 2) == [Send(A1, SayHello())]
    assert "give each server a name of its own" in refusal(join(roster, A1, hello, 3)).message
    assert roster.servers == (A2,)


def test_another_major_version_is_refused_with_both_versions(roster, hello):
    message = refusal(join(roster, A1, hello, protocol=(9, 3))).message
    assert "9.3" in message
    assert "upgrade the older side" in message
    assert roster.servers == ()


def test_another_minor_version_is_welcome(roster, hello):
    assert isinstance(join(roster, A1, hello, protocol=(1, 99))[1], Joined)


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"roles": ()}, "holds []"), ({"capable": {}}, "capable of []"), ({"name": "other"}, "identity is 'a/1'")],
)
def test_introductions_that_contradict_themselves_are_refused(roster, hello, changes, text):
    assert text in refusal(roster.hear(A1, hello(**changes), 0)).message


def test_no_more_servers_than_allowed(hello):
    roster = Roster(PoolRules("g1", 2, 10, max_servers=1))
    join(roster, A1, hello)
    assert "1 stage servers at most (its DISAGFUSION_MAX_STAGE_SERVERS)" in refusal(join(roster, B1, hello)).message
    assert isinstance(join(roster, A2, hello)[-1], Joined), "a new life takes the old one's place"


def ask(name="a", incarnation="1", **changes):
    return Ask(**({"protocol": PROTOCOL, "name": name, "incarnation": incarnation} | changes))


def test_whoever_asks_first_is_told_and_does_not_join(roster, hello):
    assert roster.hear(A1, ask(), 0) == [Send(A1, Fine(gateway="g1"))]
    assert roster.servers == ()
    assert roster.hear(A1, GRANT, 1) == [Send(A1, SayHello())], "still a stranger"
    assert join(roster, A1, hello, 2)[-1] == Joined(A1, hello())


def test_a_restarted_server_may_ask_while_its_former_life_is_still_here(roster, hello):
    join(roster, A1, hello)
    assert roster.hear(A2, ask(incarnation="2"), 1) == [Send(A2, Fine(gateway="g1"))]
    assert roster.hear(A1, GRANT, 1) == [Heard(A1, GRANT)], "it serves until the new one is loaded"


def test_what_crosses_between_stages_is_told_to_servers_of_the_same_model(roster, hello, model):
    join(roster, A1, hello, forms={Role.ENCODER: b"e"})
    join(roster, B1, hello, model=model("other"))
    assert (roster.forms(A1), roster.forms(B1)) == ({Role.ENCODER: b"e"}, {})
    ready = RolesReady(epoch=Epoch("g1", 1), roles=(Role.DIT,), load_seconds=1.0, forms={Role.DIT: b"d"})
    assert roster.hear(A1, ready, 1) == [Heard(A1, ready)]
    both = {Role.ENCODER: b"e", Role.DIT: b"d"}
    key = model().key
    (answer,) = roster.hear(A2, ask(incarnation="2"), 2)
    assert answer == Send(A2, Fine(gateway="g1", forms={key: both}))
    roster.lose(A1, "it is gone")
    assert roster.hear(A2, ask(incarnation="2"), 3) == [answer], "what was seen stays true"


def test_models_are_forgotten_in_the_order_in_which_they_came(roster, hello, model):
    for number in range(MAX_FORMS + 1):
        join(roster, A1, hello, number * 2.0, model=model(f"m{number}"), forms={Role.DIT: b"d"})
    (answer,) = roster.hear(B1, ask("b"), 999)
    assert list(answer.message.forms) == [f"m{number}@1" for number in range(1, MAX_FORMS + 1)]


def test_what_is_told_of_all_models_is_bounded(roster, hello, model):
    """By those told of last, as many as there is room for, one at least."""
    large = dict.fromkeys((Role.ENCODER, Role.DIT), b"f" * (MAX_FORMS_BYTES // 3))
    for number in range(3):
        join(roster, A1, hello, number * 2.0, model=model(f"m{number}"), forms=large)
    (answer,) = roster.hear(B1, ask("b"), 999)
    assert answer.message.forms == {"m2@1": large}


@pytest.mark.parametrize(
    ("changes", "text"), [({"protocol": (9, 3)}, "9.3"), ({"name": "other"}, "the socket's identity is 'a/1'")]
)
def test_whoever_asks_hears_what_a_hello_would_be_refused_for(roster, changes, text):
    assert text in refusal(roster.hear(A1, ask(**changes), 0)).message


def test_questions_count_as_introductions(roster):
    answers = [roster.hear(A1, ask(), 0) for _ in range(HELLO_BURST + 1)]
    assert isinstance(answers[-1][0], Warn)


def test_with_encryption_name_and_key_must_belong_together(hello):
    roster = Roster(PoolRules("g1", 2, 10, keys={"a": "key-a", "b": "key-b"}))
    assert "registered for 'b'" in refusal(roster.hear(A1, hello(public_key="key-a"), 0, user="b")).message
    assert "registered for 'b'" in refusal(roster.hear(A1, ask(public_key="key-a"), 0, user="b")).message
    assert roster.hear(A1, ask(public_key="key-a"), 0, user="a") == [Send(A1, Fine(gateway="g1"))]
    assert refusal(roster.hear(A1, hello(public_key="key-b"), 0, user="a"))
    assert isinstance(roster.hear(A1, hello(public_key="key-a"), 0, user="a")[1], Joined)


@pytest.mark.parametrize(
    ("pattern", "name", "is_let_in"),
    [
        ("*", "a", True),
        ("gpu-*", "gpu-7", True),
        ("gpu-*", "a", False),
        ("gpu*", "gpu-own", False),
        ("a", "a-1", False),
    ],
)
def test_servers_whose_names_begin_alike_may_share_a_key(hello, pattern, name, is_let_in):
    roster = Roster(PoolRules("g1", 2, 10, keys={pattern: "key-s", "gpu-own": "key-o"}))
    server = ServerId(f"{name}/1")
    answer = roster.hear(server, hello(name, public_key="key-s"), 0, user=pattern)
    assert isinstance(answer[-1], Joined) == is_let_in
    if is_let_in:
        assert roster.hear(server, GRANT, 0, user=pattern) == [Heard(server, GRANT)]
        assert isinstance(roster.hear(server, GRANT, 0, user="gpu-own")[0], Warn)


SECOND = ServerId("a.2/1")
OF_ONE = {"device": "a/1", "public_key": "key-a"}


def test_a_process_introduces_itself_once_for_each_of_its_models(hello):
    roster = Roster(PoolRules("g1", 2, 10, keys={"a": "key-a"}))
    assert isinstance(roster.hear(A1, hello(**OF_ONE), 0, user="a")[1], Joined)
    second = hello("a.2", roles=(), **OF_ONE)
    assert roster.hear(SECOND, second, 0, user="a")[1] == Joined(SECOND, second), "it may hold nothing of a model"
    assert roster.hear(SECOND, GRANT, 1, user="a") == [Heard(SECOND, GRANT)]
    assert isinstance(roster.hear(SECOND, GRANT, 1, user="b")[0], Warn)


@pytest.mark.parametrize(("name", "user"), [("b.2", "a"), ("b", "a"), ("a.b", "a"), ("a.2", "b")])
def test_a_process_has_no_names_but_its_own(hello, name, user):
    roster = Roster(PoolRules("g1", 2, 10, keys={"a": "key-a", "b": "key-b", "a.b": "key-c"}))
    assert refusal(roster.hear(ServerId(f"{name}/1"), hello(name, roles=(), **OF_ONE), 0, user=user))


def test_a_flood_of_introductions_is_left_unanswered(roster):
    for number in range(HELLO_BURST):
        roster.hear(ServerId(f"s{number}/1"), ask(f"s{number}"), 0)
    (warning,) = roster.hear(A1, ask(), 0)
    assert isinstance(warning, Warn)
    assert roster.hear(A1, ask(), 1 / HELLO_RATE) == [Send(A1, Fine(gateway="g1"))]


def test_one_server_that_introduces_itself_again_and_again_is_left_unanswered(roster, hello):
    for _ in range(OWN_BURST + 1):
        assert isinstance(join(roster, A1, hello)[-1], Joined)
    (warning,) = join(roster, A1, hello)
    assert "again and again" in warning.text
    assert isinstance(join(roster, B1, hello)[-1], Joined), "others are let in"
    assert isinstance(join(roster, A1, hello, 1 / OWN_RATE)[-1], Joined)


def test_other_gateways_are_told_of_the_cell_but_not_without_end(roster):
    question, peer = AskCell(name="b"), ServerId("~cell b/2")
    assert roster.hear(peer, question, 0) == [TellCell(peer)]
    for _ in range(ASK_BURST):
        last = roster.hear(peer, question, 0)
    assert isinstance(last[0], Warn)


def test_with_encryption_only_gateways_are_told():
    roster = Roster(PoolRules("g1", 2, 10, keys={"a": "key-a"}))
    peer = ServerId("~cell b/2")
    assert isinstance(roster.hear(peer, AskCell(name="b"), 0, user="a")[0], Warn)
    assert roster.hear(peer, AskCell(name="b"), 0, user=GATEWAYS) == [TellCell(peer)]


def test_strangers_are_not_remembered_without_limit(roster):
    for number in range(MAX_REMEMBERED + 10):
        assert roster.hear(ServerId(f"s/{number}"), GRANT, 0)
    assert roster.hear(ServerId("s/0"), GRANT, 0), "forgotten, so told again"
    assert not roster.hear(ServerId(f"s/{MAX_REMEMBERED}"), GRANT, 0)
