from __future__ import annotations

import threading

import pytest

from stage_server.data.holder import BindError
from tests.curve import generate_keys
from wire.bundle import pack, unpack
from wire.errors import InputLost, Loss
from wire.security import CurveKeys, check_bind
from wire.to_stage import InputRef
from wire.types import Handle

WAIT = 90.0
HANDLE = Handle("cd" * 16)
VALUES = {"x": b"secret" * 1000}
SERVER, CLIENT, STRANGER = generate_keys(), generate_keys(), generate_keys()


@pytest.fixture
def holder(holding):
    return holding({HANDLE: pack(VALUES)}.get, keys=SERVER)


def ref(holder, public_key=SERVER.public) -> InputRef:
    return InputRef(handle=HANDLE, endpoint=holder.endpoint, public_key=public_key)


def reason(future) -> Loss:
    error = future.exception(WAIT)
    assert isinstance(error, InputLost)
    return error.reason


def test_an_encrypted_fetch(holder, consuming):
    assert unpack(consuming(keys=CLIENT).fetch(ref(holder), WAIT).result(WAIT)) == VALUES


def test_only_allowed_keys_get_in(holding, consuming):
    asked = []

    def allow(key: str) -> bool:
        asked.append((key, threading.current_thread().name))
        return key == CLIENT.public

    holder = holding({HANDLE: pack(VALUES)}.get, keys=SERVER, allow=allow)
    assert reason(consuming(keys=STRANGER).fetch(ref(holder), WAIT)) is Loss.UNREACHABLE
    assert unpack(consuming(keys=CLIENT).fetch(ref(holder), WAIT).result(WAIT)) == VALUES
    assert asked == [(STRANGER.public, "data-holder"), (CLIENT.public, "data-holder")]
    assert holder.statistics.denied == 1


def test_a_holder_with_another_key_is_not_talked_to(holder, consuming):
    assert reason(consuming(keys=CLIENT).fetch(ref(holder, STRANGER.public), WAIT)) is Loss.UNREACHABLE


def test_plaintext_does_not_reach_an_encrypted_holder(holder, consuming):
    assert reason(consuming().fetch(ref(holder, ""), WAIT)) is Loss.UNREACHABLE


@pytest.mark.parametrize(
    ("keys", "public_key"),
    [(CLIENT, ""), (CLIENT, "short"), (None, SERVER.public)],
    ids=["no key of the holder", "no key at all", "no keys of its own"],
)
def test_keys_on_one_side_only_are_refused_before_anything_is_sent(holder, consuming, keys, public_key):
    assert reason(consuming(keys=keys).fetch(ref(holder, public_key), WAIT)) is Loss.REFUSED


def test_with_keys_any_address_may_be_bound(holding):
    assert holding({}.get, "tcp://0.0.0.0:*", keys=SERVER).endpoint


def test_an_allow_list_needs_keys(holding):
    with pytest.raises(BindError, match="needs CURVE keys"):
        holding({}.get, allow=lambda key: True)


def test_keys_are_checked_and_the_secret_is_not_shown():
    assert CLIENT.secret not in repr(CLIENT)
    with pytest.raises(ValueError, match="secret CURVE key"):
        CurveKeys(CLIENT.public, "short")


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:5601", "tcp://[::1]:*", "tcp://localhost:1", "ipc:///run/x"])
def test_this_machine_needs_no_keys(endpoint):
    check_bind(endpoint, None, allow_plaintext=False)


@pytest.mark.parametrize("endpoint", ["tcp://10.0.0.7:5601", "tcp://127.0.0.1.example.org:1", "tcp://localhost.evil:1"])
def test_other_machines_need_keys(endpoint):
    with pytest.raises(ValueError, match="CURVE keys"):
        check_bind(endpoint, None, allow_plaintext=False)
    check_bind(endpoint, SERVER, allow_plaintext=False)
