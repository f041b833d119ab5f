"""Which encodings are kept, for whom, and when they go."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from gateway.service import graph
from gateway.service.embeddings import Embeddings, alias, real
from gateway.service.interfaces import UNCOUNTED, ImageRequest, PromptRead
from wire.params import AdapterUse, ModelInfo, Workflow
from wire.to_gateway import Output, StageDone, StageFailed, Timings
from wire.types import Epoch, Handle, RequestId, Role, ServerId

A, B = ServerId("a/1"), ServerId("b/1")
R, S = RequestId("r"), RequestId("s")
EPOCH = Epoch("g", 1)
Make = Callable[..., ImageRequest]


def done(handle: str, nbytes: int = 10, batch: float = 1.0) -> StageDone:
    outputs = (Output(port=Role.DIT, handle=Handle(handle), nbytes=nbytes),)
    return StageDone(epoch=EPOCH, outputs=outputs, timings=Timings(batch=batch), prompt_tokens=7, prompt_dropped=2)


def cache(most: int = 1000, *servers: ServerId, shared: bool = False) -> Embeddings:
    made = Embeddings(most, shared=shared)
    for server in servers or (A, B):
        assert made.store(server, 400, is_full=False) == []
    return made


def key(request: ImageRequest, model: ModelInfo, embeddings: Embeddings | None = None) -> str:
    (found,) = (embeddings or cache()).keys(graph.build(request, model, 0.0), request, model).values()
    return found


@pytest.fixture
def described(model: Callable[..., ModelInfo]) -> ModelInfo:
    inputs = ("prompt", "negative_prompt", "max_sequence_length")
    return model(workflows=(Workflow("text2image", inputs, encoder_inputs=inputs),))


def changed(request: ImageRequest, **params: object) -> ImageRequest:
    images = tuple(msgspec.structs.replace(image, **params) for image in request.images)
    return ImageRequest(request.request_id, request.model, images, request.deadline_seconds, tenant=request.tenant)


def test_equal_prompts_have_equal_keys(request_for: Make, described: ModelInfo) -> None:
    first = key(request_for(), described)
    assert key(request_for(request_id="other"), described) == first
    assert key(changed(request_for(), seed=99, num_inference_steps=3, width=96), described) == first
    assert key(changed(request_for(), guidance_scale=4.5), described) == first  # the same mode as the model's own 3


@pytest.mark.parametrize(
    "params",
    [
        {"prompt": "another"},
        {"negative_prompt": None},
        {"max_sequence_length": 9},
        {"guidance_scale": 1.0},
    ],
)
def test_whatever_the_encoder_reads_is_in_the_key(
    params: dict[str, object], request_for: Make, described: ModelInfo
) -> None:
    assert key(changed(request_for(), **params), described) != key(request_for(), described)


def test_the_model_and_the_tenant_are_in_the_key(request_for: Make, described: ModelInfo) -> None:
    request = request_for()
    mine = key(request, described)
    assert key(request, msgspec.structs.replace(described, key="tiny@2")) != mine
    theirs = request_for(tenant="else")
    assert key(theirs, described) != mine
    shared = cache(shared=True)
    assert key(theirs, described, shared) == key(request, described, shared)


def test_adapters_of_the_encoder_are_in_the_key(request_for: Make, described: ModelInfo) -> None:
    work = graph.build(request_for(), described, 0.0)
    (name, job), *_ = work.jobs.items()
    adapted = msgspec.structs.replace(job.params, adapters=(AdapterUse("x", "ab", 0.5),))
    other = graph.Graph(work.spec, {name: graph.StageJob(job.spec, job.image, adapted, job.uploads)})
    embeddings = cache()
    assert embeddings.keys(other, request_for(), described) != {name: key(request_for(), described)}


def test_a_picture_is_part_of_the_key_with_all_that_its_encoding_draws_from(
    request_for: Make, model: Callable[..., ModelInfo]
) -> None:
    inputs = ("prompt", "image")
    described = model(workflows=(Workflow("text2image", inputs, encoder_inputs=inputs),))

    def of(data: bytes, **params: object) -> str:
        plain = changed(request_for(), **params)
        request = ImageRequest("r", "tiny", plain.images, 10.0, uploads={"image": data})
        work = graph.build(request, described, 0.0)
        (found,) = cache().keys(work, request, described).values()
        return found

    assert of(b"a") == of(b"a")
    assert len({of(b"a"), of(b"b"), of(b"a", seed=8), of(b"a", width=96), of(b"a", strength=0.5)}) == 5


def test_where_the_inputs_are_not_known_nothing_is_kept(request_for: Make, model: Callable[..., ModelInfo]) -> None:
    request = request_for()
    assert cache().keys(graph.build(request, model(), 0.0), request, model()) == {}


def test_found_under_a_name_of_the_request_with_what_was_counted() -> None:
    embeddings = cache()
    assert embeddings.find("k", R, exact=True) is None
    assert embeddings.made("k", A, done("h")) == []
    kept = embeddings.find("k", R, exact=True)
    assert kept is not None
    assert kept.prompt == PromptRead(7, 2) != UNCOUNTED
    (output,) = kept.made.outputs
    assert (kept.made.holder, output.handle, real(output.handle)) == (A, alias(Handle("h"), R), "h")


def test_who_made_it_is_known() -> None:
    embeddings = cache()
    embeddings.made("k", A, done("h"), "00-trace-span-01")
    kept = embeddings.find("k", R, exact=True)
    assert kept is not None
    assert kept.traceparent == "00-trace-span-01"


def test_an_exact_request_uses_only_what_was_computed_alone() -> None:
    embeddings = cache()
    embeddings.made("k", A, done("h", batch=2.0))
    assert embeddings.find("k", R, exact=True) is None
    assert embeddings.find("k", S, exact=False) is not None
    embeddings.made("k", A, done("better"))
    kept = embeddings.find("k", R, exact=True)
    assert kept is not None
    assert real(kept.made.outputs[0].handle) == "better"


def test_what_is_kept_outlives_its_owner_and_its_users() -> None:
    embeddings = cache()
    embeddings.made("k", A, done("h"))
    assert embeddings.released(A, (Handle("h"), Handle("other"))) == ("other",)
    embeddings.find("k", R, exact=True)
    assert embeddings.released(A, (alias(Handle("h"), R),)) == ()
    assert embeddings.over(R) == []
    assert embeddings.find("k", S, exact=True) is not None


def test_what_is_not_kept_any_more_goes_with_the_last_who_needs_it() -> None:
    embeddings = cache()
    embeddings.made("k", A, done("h"))
    embeddings.find("k", R, exact=True)
    assert embeddings.store(A, 400, is_full=True) == []  # its owner and R
    assert embeddings.find("k", S, exact=True) is None
    assert embeddings.released(A, (Handle("h"),)) == ()
    assert embeddings.over(R) == [(A, (Handle("h"),))]
    assert embeddings.over(R) == []


def test_bytes_are_bounded_per_store_and_in_all() -> None:
    embeddings = cache()
    for name in "xyz":
        embeddings.made(name, A, done(name, nbytes=40))
        embeddings.released(A, (Handle(name),))
    assert [embeddings.find(name, R, exact=True) is not None for name in "xyz"] == [False, True, True]
    assert embeddings.made("large", A, done("large", nbytes=101)) == []
    assert embeddings.find("large", R, exact=True) is None
    small = cache(90)
    small.made("x", A, done("x", nbytes=50))
    small.released(A, (Handle("x"),))
    assert small.made("y", B, done("y", nbytes=50)) == [(A, (Handle("x"),))]


def test_used_longest_ago_goes_first() -> None:
    embeddings = cache()
    for name in "xy":
        embeddings.made(name, A, done(name, nbytes=40))
    embeddings.find("x", R, exact=True)
    embeddings.made("z", A, done("z", nbytes=40))
    assert [embeddings.find(name, S, exact=True) is not None for name in "xyz"] == [True, False, True]


def test_a_server_of_unknown_size_keeps_nothing() -> None:
    embeddings = Embeddings(1000)
    embeddings.made("k", A, done("h"))
    assert embeddings.released(A, (Handle("h"),)) == ("h",)


def test_a_lost_input_is_kept_no_more_and_told_under_its_name() -> None:
    embeddings = cache()
    embeddings.made("k", A, done("h"))
    embeddings.released(A, (Handle("h"),))
    embeddings.find("k", R, exact=True)
    message = StageFailed(
        epoch=EPOCH, code="input_lost", message="", retryable=True,
        lost_inputs=(Handle("h"), Handle("x")), unreached=(Handle("h"),),
    )  # fmt: skip
    told, releases = embeddings.failed(R, message)
    assert (told.lost_inputs, told.unreached, releases) == ((alias(Handle("h"), R), "x"), (alias(Handle("h"), R),), [])
    assert embeddings.find("k", S, exact=True) is None
    assert embeddings.released(A, (alias(Handle("h"), R),)) == ("h",)


def test_a_server_that_leaves_or_is_gone_keeps_nothing() -> None:
    embeddings = cache()
    for server, name in ((A, "x"), (B, "y")):
        embeddings.made(name, server, done(name))
        embeddings.released(server, (Handle(name),))
    assert embeddings.leaves(A) == [(A, (Handle("x"),))]
    embeddings.store(A, 400, is_full=False)
    embeddings.made("x", A, done("x2"))
    assert embeddings.find("x", R, exact=True) is None
    embeddings.forget(B)
    assert embeddings.find("y", R, exact=True) is None
    assert embeddings.released(B, (Handle("y"),)) == ("y",)


def test_of_two_that_encode_the_same_at_once_one_is_kept() -> None:
    embeddings = cache()
    embeddings.made("k", A, done("h"))
    embeddings.made("k", B, done("i"))
    assert embeddings.released(B, (Handle("i"),)) == ("i",)
    assert embeddings.released(A, (Handle("h"),)) == ()
