"""torch and PIL values cross unchanged, or are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image as PilImage

from stage_server.engine.tensors import ALIGNMENT, TORCH_DTYPES, from_wire, generator_from_state, to_wire
from wire.errors import UnsupportedValue
from wire.values import DTYPE_BYTES, Image, Tensor


def as_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def there_and_back(value: Any) -> Any:
    return from_wire(to_wire("value", value, as_is), as_is)


def test_every_dtype_of_the_wire_is_one_of_torch() -> None:
    assert set(TORCH_DTYPES) == set(DTYPE_BYTES)
    assert all(torch.empty(0, dtype=dtype).element_size() == DTYPE_BYTES[name] for name, dtype in TORCH_DTYPES.items())


@pytest.mark.parametrize("dtype", TORCH_DTYPES.values(), ids=TORCH_DTYPES.keys())
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4)])
def test_tensors_keep_dtype_shape_and_bits(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    count = torch.empty(shape).numel()
    bits = torch.arange(count * dtype.itemsize, dtype=torch.int64).to(torch.uint8) % 2
    tensor = bits.view(dtype).reshape(shape)

    back = there_and_back(tensor)

    assert back.dtype == dtype
    assert back.shape == shape
    assert torch.equal(back.reshape(-1).view(torch.uint8), bits)


@pytest.mark.parametrize("dtype", TORCH_DTYPES.values(), ids=TORCH_DTYPES.keys())
def test_dtypes_cross_alone_and_within(dtype: torch.dtype) -> None:
    assert there_and_back(dtype) is dtype
    assert there_and_back({"kept": [dtype, 1]}) == {"kept": [dtype, 1]}


def test_a_dtype_that_this_torch_lacks_is_named() -> None:
    (key,) = to_wire("dtype", torch.float16, as_is)  # type: ignore[misc]
    for strange in ("float12", "nn", 3):
        with pytest.raises(UnsupportedValue, match=f"has no dtype {strange!r}"):
            from_wire({key: strange}, as_is)


def test_contiguous_tensors_are_not_copied() -> None:
    tensor = torch.zeros(64)
    crossed = to_wire("value", tensor, as_is)
    tensor[0] = 7.0
    assert from_wire(crossed, as_is)[0] == 7.0


def test_a_small_part_of_a_large_buffer_does_not_keep_it_alive() -> None:
    whole = torch.zeros(1000)
    crossed = to_wire("value", whole[:10], as_is)
    whole[0] = 7.0
    assert from_wire(crossed, as_is)[0] == 0.0


def test_memory_layout_crosses() -> None:
    """Channels-last latents give other last bits in a convolution than the same latents made contiguous."""
    tensor = torch.randn(1, 4, 8, 6).to(memory_format=torch.channels_last)
    back = there_and_back(tensor)
    assert torch.equal(back, tensor)
    assert back.stride() == tensor.stride()


@pytest.mark.parametrize("make", [lambda t: t.expand(5, 3), lambda t: t[:, ::2], lambda t: t.T])
def test_strided_tensors(make: Any) -> None:
    tensor = make(torch.arange(3.0).reshape(1, 3))
    assert torch.equal(there_and_back(tensor), tensor)


def test_received_tensors_are_aligned_like_torch_own() -> None:
    buffer = bytearray(4 * 8 + ALIGNMENT)
    for offset in range(0, ALIGNMENT, 4):
        tensor = from_wire(Tensor("float32", (8,), memoryview(buffer)[offset : offset + 32]), as_is)
        assert tensor.data_ptr() % ALIGNMENT == 0


def test_containers_and_scalars() -> None:
    value = {"a": [1, 2.5, None, True, "text"], "b": ((1, 2), torch.ones(2)), "c": b"bytes"}
    back = there_and_back(value)
    assert torch.equal(back["b"].__getitem__(1), torch.ones(2))
    assert back["a"] == value["a"]
    assert back["b"][0] == (1, 2)
    assert back["c"] == b"bytes"


def test_pictures_cross_as_png() -> None:
    picture = PilImage.new("L", (5, 3), 77)
    crossed = to_wire("mask", picture, as_is)
    assert isinstance(crossed, Image)
    back = from_wire(crossed, as_is)
    assert (back.mode, back.size, back.tobytes()) == (picture.mode, picture.size, picture.tobytes())


def test_a_generator_continues_where_it_stopped() -> None:
    generator = torch.Generator("cpu").manual_seed(3)
    torch.randn(5, generator=generator)
    other = generator_from_state(there_and_back(generator))
    assert other.initial_seed() == 3
    assert torch.equal(torch.randn(4, generator=other), torch.randn(4, generator=generator))


@pytest.mark.parametrize("value", [object(), {1: 2}, {"inner": {1, 2}}, torch.device("cpu")])
def test_other_values_are_refused_by_name(value: Any) -> None:
    with pytest.raises(UnsupportedValue, match="mask_overlay_kwargs"):
        to_wire("mask_overlay_kwargs", value, as_is)


def test_dtypes_that_cannot_cross_are_refused() -> None:
    with pytest.raises(UnsupportedValue, match=r"latents has dtype torch\.bits8"):
        to_wire("latents", torch.empty(2, dtype=torch.bits8), as_is)
