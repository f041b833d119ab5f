from __future__ import annotations

import tracemalloc

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wire import to_gateway, to_stage
from wire.control_codec import MAX_CONTROL_BYTES, MAX_TO_STAGE_BYTES, decode_to_gateway, decode_to_stage, encode
from wire.errors import FrameTooLarge, MalformedFrame, ProtocolMismatch, WireError
from wire.params import ImageParams, ModelInfo, Workflow
from wire.types import Epoch, Handle, Role
from wire.version import PROTOCOL, check_protocol

EPOCH = Epoch("g1", 7)
HELLO = to_gateway.Hello(
    protocol=PROTOCOL,
    name="dit-0",
    incarnation="ab12",
    model=ModelInfo(
        name="m", key="m@1", family="z-image", dtype="bfloat16", workflows=(Workflow("text2image", ("prompt",)),)
    ),
    device_class="cpu-1",
    memory_bytes=1 << 33,
    capable={Role.DIT: to_gateway.RoleInfo(weight_bytes=12)},
    roles=(Role.DIT,),
    data_endpoint="tcp://127.0.0.1:5601",
    running=(EPOCH,),
    holds=(Handle("00" * 16),),
    limits={Role.DIT: 2},
)
RUN = to_stage.Run(
    role=Role.DIT,
    members=(
        to_stage.Member(
            epoch=EPOCH,
            params=ImageParams(prompt="ein roter Kreis", height=64, width=64, guidance_scale=3.5),
            inputs=(to_stage.InputRef(handle=Handle("ff" * 16), endpoint="tcp://h:1", nbytes=9),),
        ),
    ),
    remaining_seconds=12.5,
)


@pytest.mark.parametrize("message", [HELLO, to_gateway.Grant(limits={Role.DIT: 3}), to_gateway.Goodbye()])
def test_messages_to_the_gateway_come_back_equal(message):
    assert decode_to_gateway(encode(message)) == message


@pytest.mark.parametrize("message", [RUN, to_stage.Cancel(epochs=(EPOCH,)), to_stage.Shutdown()])
def test_messages_to_a_stage_come_back_equal(message):
    assert decode_to_stage(memoryview(encode(message))) == message


def test_unknown_fields_are_skipped():
    frame = msgspec.msgpack.encode({"type": "Heartbeat", "sequence": 3, "from_the_future": {"a": [1, 2]}})
    assert decode_to_gateway(frame) == to_gateway.Heartbeat(sequence=3)


def test_epochs_and_roles_come_back_as_their_types():
    run = decode_to_stage(encode(RUN))
    assert isinstance(run, to_stage.Run)
    assert isinstance(run.members[0].epoch, Epoch)
    assert run.role is Role.DIT


@pytest.mark.parametrize(
    ("frame", "fault"),
    [
        (b"", "truncated"),
        (encode(HELLO)[:-5], "truncated"),
        (b"\xc1", "invalid opcode"),
        (encode(to_gateway.Goodbye()) + b"x", "trailing"),
        (msgspec.msgpack.encode({"type": "Explode"}), "Explode"),
        (msgspec.msgpack.encode({"type": "Explode" * 10_000}), "Explode"),
        (msgspec.msgpack.encode({"sequence": 1}), "type"),
        (msgspec.msgpack.encode([1, 2]), "array"),
        (msgspec.msgpack.encode({"type": "Heartbeat", "sequence": float("nan")}), "sequence"),
        (msgspec.msgpack.encode({"type": "Grant", "limits": {"cook": 1}}), "cook"),
        (b"\x82\xa4type\xabStageFailed\xa4code\xa2\xff\xff", "utf-8"),
        (b"\x82\xa4type\xaaRolesReady\xa5roles\xdd\xff\xff\xff\xff", "length <= 5"),
        (b"\x82\xa4type\xa5Hello\xa5holds\xdd\xff\xff\xff\xff", "truncated"),
        (b"\x82\xa4type\xa5Grant\xa5other" + b"\x91" * 500_000 + b"\xc0", "nested"),
    ],
)
def test_malformed_frames_are_named(frame, fault):
    with pytest.raises(MalformedFrame, match=fault) as caught:
        decode_to_gateway(frame)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("wait", -1.0),
        ("compute", float("nan")),
        ("compute", float("inf")),
        ("steps", -5),
        ("steps", 1 << 62),
        ("batch", 0),
        ("handle", ""),
        ("handle", "h" * 600_000),
        ("nbytes", -1),
        ("port", "two\nlines"),
        ("outputs", 1000),
    ],
)
def test_impossible_reports_are_refused(field, value):
    output = {"port": "dit", "handle": "ab" * 16, "nbytes": 5}
    report = {"type": "StageDone", "epoch": ["g", 1], "outputs": [output], "timings": {}}
    if field == "outputs":
        report[field] *= value
    else:
        (output if field in output else report["timings"])[field] = value
    with pytest.raises(MalformedFrame, match=field):
        decode_to_gateway(msgspec.msgpack.encode(report))


@pytest.mark.parametrize("seconds", [-0.1, 1.5, float("nan"), float("inf")])
def test_no_device_can_be_kept_for_long(seconds):
    assert decode_to_stage(encode(msgspec.structs.replace(RUN, keep_seconds=1.0))).keep_seconds == 1.0
    with pytest.raises(MalformedFrame, match="keep_seconds"):
        decode_to_stage(encode(msgspec.structs.replace(RUN, keep_seconds=seconds)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "two\nlines"),
        ("data_endpoint", "tcp://" + "h" * 1000 + ":1"),
        ("memory_bytes", -1),
        ("roles", ["dit"] * 6),
        ("default_steps", -4),
        ("size_multiple", 0),
        ("default_size", [0, 0]),
        ("load_seconds", float("inf")),
    ],
)
def test_impossible_introductions_are_refused(field, value):
    hello = msgspec.msgpack.decode(encode(HELLO))
    for part in (hello, hello["model"], *hello["capable"].values()):
        if field in part or part is not hello:
            part[field] = value
    with pytest.raises(MalformedFrame, match=field):
        decode_to_gateway(msgspec.msgpack.encode(hello))


def test_oversized_frames_are_refused_on_both_sides():
    with pytest.raises(FrameTooLarge, match=str(MAX_CONTROL_BYTES)):
        decode_to_gateway(bytes(MAX_CONTROL_BYTES + 1))
    with pytest.raises(FrameTooLarge, match=str(MAX_TO_STAGE_BYTES)):
        decode_to_stage(bytes(MAX_TO_STAGE_BYTES + 1))
    with pytest.raises(FrameTooLarge, match="Release"):
        encode(to_stage.Release(handles=(Handle("x" * MAX_TO_STAGE_BYTES),)))
    with pytest.raises(FrameTooLarge, match="RolesFailed"):
        encode(to_gateway.RolesFailed(epoch=Epoch("g", 1), roles=(), message="x" * MAX_CONTROL_BYTES))


def test_the_largest_batch_of_the_longest_prompts_fits():
    longest = "\N{GRINNING FACE}" * 32_000
    (member,) = RUN.members[:1]
    params = msgspec.structs.replace(member.params, prompt=longest, negative_prompt=longest)
    member = msgspec.structs.replace(member, params=params)
    assert encode(msgspec.structs.replace(RUN, members=(member,) * 32))


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_random_bytes_never_do_more_than_raise(frame):
    for decode in (decode_to_gateway, decode_to_stage):
        with pytest.raises(WireError):
            decode(frame)


@settings(max_examples=300)
@given(st.data())
def test_flipped_bytes_never_do_more_than_raise(data):
    frame = bytearray(encode(HELLO))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    tracemalloc.start()
    try:
        decode_to_gateway(frame)
    except WireError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 1 << 20


def test_a_wrong_major_version_is_refused_with_both_versions_named():
    check_protocol((PROTOCOL[0], PROTOCOL[1] + 5))
    with pytest.raises(ProtocolMismatch, match=r"2\.0, this process 1\.5"):
        check_protocol((2, 0))
