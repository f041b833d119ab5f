"""What crosses between stages is told without its numbers; what is told is checked before anything is made of it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from stage_server.engine.forms import Forms, form_of, zeros
from wire.bundle import pack
from wire.errors import WireError
from wire.types import Role
from wire.values import Image, Tensor, Value


def tensor(values: object, dtype: str) -> Tensor:
    array = np.ascontiguousarray(np.asarray(values, dtype))
    return Tensor(dtype, array.shape, array.reshape(-1).view(np.uint8).data)


MASK = tensor([[1, 1, 0]], "int64")
OUTPUTS: dict[str, dict[str, Value]] = {
    Role.DIT: {
        "prompt_embeds": tensor(np.full((1, 3, 8), 2.5), "float32"),
        "prompt_embeds_mask": MASK,
        "each": [tensor(np.ones((2, 0)), "float16"), (None, True, 3, 0.5, "as it is")],
        "nested": {"big": tensor(np.ones(1024), "int64")},
    },
    Role.DECODER: {"overlay": Image(b"png"), "size": 64},
}


def test_floats_and_what_is_large_become_zeros_and_the_rest_stays() -> None:
    form = form_of(OUTPUTS)
    assert form is not None
    assert zeros(form) == {
        Role.DIT: {
            "prompt_embeds": tensor(np.zeros((1, 3, 8)), "float32"),
            "prompt_embeds_mask": MASK,
            "each": [tensor(np.zeros((2, 0)), "float16"), (None, True, 3, 0.5, "as it is")],
            "nested": {"big": tensor(np.zeros(1024), "int64")},
        },
        Role.DECODER: OUTPUTS[Role.DECODER],
    }


def test_what_is_known_of_a_role_is_told_to_whom_it_concerns() -> None:
    here, there = Forms(), Forms()
    here.note(Role.ENCODER, OUTPUTS)
    assert here.stand_ins(Role.ENCODER, Role.DIT) is None, "here it is known in earnest"
    there.learn(here.seen())
    found = there.stand_ins(Role.ENCODER, Role.DIT)
    assert found is not None
    assert found.keys() == OUTPUTS[Role.DIT].keys()
    assert there.stand_ins(Role.ENCODER, Role.UPSCALER) == {}
    assert there.stand_ins(Role.DIT, Role.DECODER) is None
    assert there.seen() == {}, "hearsay is not passed on"


def test_what_is_too_much_to_tell_is_not_told() -> None:
    forms = Forms()
    forms.note(Role.ENCODER, {Role.DECODER: {"overlay": Image(bytes(1 << 16))}})
    assert forms.seen() == {}


def encoded(**values: Value) -> bytes:
    bundle = pack({Role.DIT: values})
    return msgspec.msgpack.encode((bundle.header, bytes(bundle.view(0, bundle.nbytes))))


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (b"no form", "a form"),
        (msgspec.msgpack.encode((b"no header", b"")), "bundle header"),
        (msgspec.msgpack.encode((pack({"dit": 3}).header, b"")), "dit holds a int, not named values"),
        (encoded(x={"shape of zeros": (1 << 40,), "dtype of zeros": "float32"}), "at most 1073741824"),
        (encoded(x={"shape of zeros": (-1,), "dtype of zeros": "float32"}), "is no tensor"),
        (encoded(x={"shape of zeros": (True,), "dtype of zeros": "float32"}), "is no tensor"),
        (encoded(x={"shape of zeros": (1,), "dtype of zeros": "float31"}), "is no tensor"),
        (encoded(x={"shape of zeros": 3, "dtype of zeros": "float32"}), "is no tensor"),
        (encoded(x={"shape of zeros": (1,), "dtype of zeros": ["float32"]}), "is no tensor"),
        (encoded(x=[{"shape of zeros": (1 << 29,), "dtype of zeros": "int8"}] * 3), "tensors of 1610612736 bytes"),
    ],
)
def test_a_form_that_is_none_is_as_good_as_none(form: bytes, words: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(WireError, match=words):
        zeros(form)
    forms = Forms()
    forms.learn({Role.ENCODER: form})
    assert forms.stand_ins(Role.ENCODER, Role.DIT) is None
    assert "cannot be read" in caplog.text
