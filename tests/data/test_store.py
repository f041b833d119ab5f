from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage_server.data.store import OutputStore, OutputTooLarge
from wire.bundle import Bundle
from wire.types import REQUIRED, Handle, Role

ENCODER, DIT, DECODER = REQUIRED
EVERYTHING = dict.fromkeys(Role, 1.0)


def bundle(nbytes: int) -> Bundle:
    return Bundle(b"", nbytes, ((0, memoryview(bytes(nbytes))),))


def publish(store: OutputStore, role: Role, nbytes: int) -> Handle:
    reservation = store.reserve(role, nbytes)
    assert reservation is not None
    return store.publish(reservation, bundle(nbytes))


def test_an_output_lives_until_it_is_released():
    store = OutputStore(100)
    handle = publish(store, DECODER, 60)
    assert len(handle) == 32
    assert store.get(handle).nbytes == 60
    assert store.handles() == (handle,)
    assert store.release([handle, Handle("unknown")]) == 60
    assert store.release([handle]) == 0
    assert store.get(handle) is None


def test_a_full_store_has_no_room_until_something_is_released():
    rooms = []
    store = OutputStore(100, on_room=lambda: rooms.append(store.statistics().used))
    handle = publish(store, DECODER, 60)
    assert store.reserve(DECODER, 41) is None
    store.release([handle])
    assert rooms == [0]
    assert store.reserve(DECODER, 100) is not None


def test_several_outputs_share_a_reservation_and_its_rest_is_given_back():
    store = OutputStore(100)
    reservation = store.reserve(DECODER, 90)
    store.publish(reservation, bundle(20))
    store.publish(reservation, bundle(30))
    assert store.statistics().used == 90
    store.close(reservation)
    store.close(reservation)
    statistics = store.statistics()
    assert (statistics.used, statistics.published, statistics.outputs) == (50, 50, 2)
    with pytest.raises(ValueError, match="closed"):
        store.publish(reservation, bundle(1))


def test_more_than_was_reserved_is_refused():
    store = OutputStore(100)
    reservation = store.reserve(DECODER, 10)
    with pytest.raises(OutputTooLarge, match="11 bytes; 10 are left"):
        store.publish(reservation, bundle(11))


def test_what_can_never_fit_is_an_error_rather_than_a_wait():
    store = OutputStore(100)
    with pytest.raises(OutputTooLarge, match="at most 50 for encoder"):
        store.reserve(ENCODER, 51)
    store.set_roles({ENCODER: 40, DIT: 60})
    with pytest.raises(OutputTooLarge, match="at most 40 for encoder"):
        store.reserve(ENCODER, 41)


def test_a_role_fills_no_more_than_its_share():
    store = OutputStore(100)
    publish(store, ENCODER, 30)
    assert store.reserve(ENCODER, 21) is None
    assert store.reserve(DIT, 21) is not None


def test_room_is_kept_for_the_roles_that_empty_the_store():
    store = OutputStore(100, shares=EVERYTHING)
    store.set_roles({ENCODER: 40, DIT: 30, DECODER: 10})
    publish(store, ENCODER, 40)
    assert store.reserve(ENCODER, 21) is None
    publish(store, ENCODER, 20)
    assert store.reserve(DIT, 31) is None
    latents = publish(store, DIT, 30)
    image = publish(store, DECODER, 10)
    assert store.statistics().used == 100

    store.release([latents])
    assert store.reserve(ENCODER, 1) is None
    assert publish(store, DIT, 30)
    store.release([image])
    assert store.reserve(DIT, 1) is None


def test_a_role_that_goes_gives_its_room_back():
    store = OutputStore(100, shares=EVERYTHING)
    store.set_roles({ENCODER: 40, DIT: 30})
    assert store.reserve(ENCODER, 70) is not None
    assert store.reserve(ENCODER, 30) is None
    store.set_roles({ENCODER: 40})
    assert store.reserve(ENCODER, 30) is not None


def test_roles_whose_outputs_cannot_fit_together_are_refused_and_change_nothing():
    store = OutputStore(100, shares=EVERYTHING)
    with pytest.raises(OutputTooLarge, match=r"encoder can have 50 bytes.*100 bytes has 40"):
        store.set_roles({ENCODER: 50, DIT: 60})
    assert store.reserve(ENCODER, 100) is not None


def test_dropping_everything_leaves_reservations():
    store = OutputStore(100)
    publish(store, DECODER, 10)
    reservation = store.reserve(DECODER, 20)
    assert store.release(store.handles()) == 10
    assert store.statistics().used == 20
    assert store.publish(reservation, bundle(20))


def test_a_capacity_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        OutputStore(0)


def assert_can_run(store: OutputStore, role: Role) -> None:
    reservation = store.reserve(role, 60)
    assert reservation is not None
    store.close(reservation)


steps = st.tuples(
    st.sampled_from(["reserve", "publish", "close", "release"]), st.sampled_from(REQUIRED), st.integers(0, 60)
)


@settings(max_examples=150)
@given(st.lists(steps, max_size=40))
def test_the_books_balance_and_the_roles_that_empty_the_store_can_run(script):
    store = OutputStore(200, shares=EVERYTHING)
    store.set_roles(dict.fromkeys(REQUIRED, 60))
    open_, handles = [], []
    for step, role, n in script:
        if step == "reserve" and (reservation := store.reserve(role, n)):
            open_.append(reservation)
        elif step == "publish" and open_:
            reservation = open_[n % len(open_)]
            handles.append(store.publish(reservation, bundle(min(n, reservation.remaining))))
        elif step == "close" and open_:
            store.close(open_.pop(n % len(open_)))
        elif step == "release" and handles:
            store.release([handles.pop(n % len(handles))])
        statistics = store.statistics()
        assert statistics.used == statistics.published + sum(r.remaining for r in open_) <= statistics.capacity
        by_role = statistics.by_role
        if by_role[DECODER] == 0:
            assert_can_run(store, DECODER)
        if by_role[DIT] == 0 and by_role[DECODER] <= 60:
            assert_can_run(store, DIT)
