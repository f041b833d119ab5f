"""A request as a graph of stage jobs (docs/architecture.md, "The life of a request"). Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from functools import lru_cache

import msgspec

from gateway.service.interfaces import ImageRequest, UnsupportedRequest
from gateway.service.references import PictureWork, picture_work
from scheduler.cost.work import Work
from scheduler.spec import JobSpec, Made, RequestSpec
from wire.guiders import more_passes
from wire.params import ImageParams, ModelInfo, Upscaler, Workflow
from wire.record import record
from wire.to_stage import InputRef
from wire.types import JobId, ModelKey, RequestId, Role

FALLBACK_STEPS = 50

LEAST_SHARE = 0.05
"""Of a pass, that a ControlNet adds to it, or an IP-Adapter."""

TOKEN_STEP = 64
"""Predicted lengths are rounded up to it: so much alike, jobs cost the same."""

_work = lru_cache(maxsize=4096)(Work)
"""Most requests ask for what others have asked for, and what is the same object is found without being compared."""

PICTURE, MASK, CONTROL = "image", "mask_image", "control_image"
PROMPTING = "ip_adapter_image"
"""Names of uploads; further pictures are ``image_1``, ``image_2``, …, and ``control_image_1``, …"""


@record(frozen=True, slots=True)
class StageJob:
    """What the scheduler must not know of a job, beside what it must."""

    spec: JobSpec
    image: int | None
    """Index of the image; None when all images share the job."""
    params: ImageParams
    uploads: Mapping[str, InputRef] = field(default_factory=dict)
    preview: int | None = None
    """Index of the intermediate picture that it decodes; None for a job that was promised."""


@record(frozen=True, slots=True)
class Graph:
    spec: RequestSpec
    jobs: Mapping[JobId, StageJob]
    """Those of previews too, which may never come into being."""


def build(
    request: ImageRequest,
    model: ModelInfo,
    deadline: float,
    uploads: Mapping[str, InputRef] | None = None,
    rewritten: str | None = None,
) -> Graph:
    """The jobs of ``request``, in an order in which each follows those it needs.

    ``deadline`` is absolute, on the scheduler's clock. ``rewritten``: what the enhancer would make of the prompt, where
    that is known. Raises ``UnsupportedRequest``.
    """
    if rewritten is not None:
        images = tuple(msgspec.structs.replace(params, prompt=rewritten) for params in request.images)
        request = replace(request, images=images, enhance=False)
    workflow = _workflow(model, request.images[0].workflow)
    jobs = {job.spec.id: _adapted(job, model) for job in _jobs(request, model, workflow, uploads or {})}
    spec = RequestSpec(
        RequestId(request.request_id),
        ModelKey(model.key),
        tuple(job.spec for job in jobs.values() if job.preview is None),
        deadline,
        tenant=request.tenant,
        priority=request.priority,
        exact=request.exact,
    )
    return Graph(spec, jobs)


def supplied(graph: Graph, made: Mapping[JobId, Made]) -> Graph:
    """The same, where these jobs are done from the start."""
    if not made:
        return graph
    jobs = tuple(replace(job, made=made.get(job.id)) for job in graph.spec.jobs)
    return Graph(replace(graph.spec, jobs=jobs), graph.jobs)


def enhanced(graph: Graph, prompt: str) -> Graph:
    """The same, where encoder jobs read ``prompt``."""

    def told(job: StageJob) -> StageJob:
        return replace(job, params=msgspec.structs.replace(job.params, prompt=prompt))

    jobs = {name: told(job) if job.spec.role is Role.ENCODER else job for name, job in graph.jobs.items()}
    return Graph(graph.spec, jobs)


def _jobs(
    request: ImageRequest, model: ModelInfo, workflow: Workflow, uploads: Mapping[str, InputRef]
) -> Iterator[StageJob]:
    """Encoding text knows no seed, so all images share it; encoding a picture samples with the image's own."""
    steering = {} if CONTROL in workflow.encoder_inputs else {name: uploads[name] for name in filter(steers, uploads)}
    uploads = {name: upload for name, upload in uploads.items() if name not in steering}
    first = _not_upscaled(request.images[0])
    enhancer = _enhancer(request, first, model) if request.enhance else None
    if enhancer is not None:
        yield enhancer
    told = () if enhancer is None else (enhancer.spec.id,)
    shared = None if uploads else _encoder(request, first, None, uploads, PictureWork(), told)
    if shared is not None:
        yield shared
    for index, params in enumerate(request.images):
        sent = [request.uploads.get(name) for name in uploads if name not in (MASK, PROMPTING)]
        pictures = picture_work(workflow, sent, (params.width, params.height))
        encoder = shared or _encoder(request, params, index, uploads, pictures, told)
        if encoder is not shared:
            yield encoder
        upscaler, upscaled = _upscaler(model, params), params
        params = _not_upscaled(params)
        blank = msgspec.structs.replace(params, prompt="", negative_prompt=None)
        needs = (encoder.spec.id,) if (Role.ENCODER, Role.DECODER) in workflow.edges else ()
        decoding = _work(Role.DECODER, height=params.height, width=params.width)
        # What lies outside the mask is put back from the picture as it was sent.
        originals = {name: uploads[name] for name in (PICTURE, MASK) if MASK in uploads}
        previews = [
            _preview(request, index, number, blank, decoding, needs, originals) for number in range(params.previews)
        ]
        yield from previews
        dit = _job(request, index, blank, _denoising(params, model, pictures), (encoder.spec.id,), steering)
        shown = tuple(preview.spec for preview in previews)
        dit = replace(dit, spec=replace(dit.spec, previews=shown)) if shown else dit
        yield dit
        decoder = _job(request, index, blank, decoding, (*needs, dit.spec.id), originals)
        yield from [decoder] if upscaler is None else _passed_on(request, decoder, upscaled, upscaler)


def _upscaler(model: ModelInfo, params: ImageParams) -> Upscaler | None:
    if not params.upscale:
        return None
    if model.upscaler is None or model.upscaler.factor != params.upscale:
        raise UnsupportedRequest(f"The model '{model.name}' has no such upscaler any more.", param="upscale")
    return model.upscaler


def _not_upscaled(params: ImageParams) -> ImageParams:
    """As stages see it that have no part in it."""
    return msgspec.structs.replace(params, upscale=0) if params.upscale else params


def _passed_on(request: ImageRequest, decoder: StageJob, params: ImageParams, upscaler: Upscaler) -> Iterator[StageJob]:
    """A decoder job whose picture is made larger, and the job that does it on a server that has this upscaler."""
    told = msgspec.structs.replace(decoder.params, upscale=params.upscale)
    yield replace(decoder, params=told, spec=replace(decoder.spec, is_passed_on=True))
    work = _work(Role.UPSCALER, height=params.height, width=params.width)
    last = _job(request, decoder.image, told, work, (decoder.spec.id,))
    yield replace(last, spec=replace(last.spec, adapters=frozenset({upscaler.key})))


def _adapted(job: StageJob, model: ModelInfo) -> StageJob:
    """Told of those adapters that concern its stage, and sent to servers that have them."""
    uses = job.params.adapters
    if not uses:
        return job
    offered = {(adapter.name, adapter.digest): adapter for adapter in model.adapters}
    if gone := [use.name for use in uses if (use.name, use.digest) not in offered]:
        raise UnsupportedRequest(f"The model '{model.name}' has no LoRA '{gone[0]}' any more.", param="lora")
    found = [(use, offered[use.name, use.digest]) for use in uses]
    concerned = [(use, adapter) for use, adapter in found if job.spec.role in adapter.roles]
    params = msgspec.structs.replace(job.params, adapters=tuple(use for use, _ in concerned))
    keys, scales = frozenset(adapter.key for _, adapter in concerned), tuple(use.scale for use, _ in concerned)
    return replace(job, params=params, spec=replace(job.spec, adapters=job.spec.adapters | keys, scales=scales))


def _preview(
    request: ImageRequest,
    index: int,
    number: int,
    params: ImageParams,
    work: Work,
    needs: tuple[JobId, ...],
    uploads: Mapping[str, InputRef],
) -> StageJob:
    name = f"{request.request_id}/{work.role}.{index}.preview.{number}"
    return StageJob(JobSpec(JobId(name), work.role, work, needs, optional=True), index, params, uploads, number)


def _enhancer(request: ImageRequest, first: ImageParams, model: ModelInfo) -> StageJob:
    """All images have one prompt. It is told nothing but that, and is sent to a server that has this very enhancer."""
    enhancer = model.enhancer
    if enhancer is None:
        raise UnsupportedRequest(f"The model '{model.name}' has no enhancer any more.", param="enhance")
    tokens = -(-enhancer.tokens(first.prompt) // TOKEN_STEP) * TOKEN_STEP
    params = ImageParams(workflow=first.workflow, prompt=first.prompt, seed=first.seed)
    job = _job(request, None, params, _work(Role.ENHANCER, text_tokens=tokens), ())
    return replace(job, spec=replace(job.spec, adapters=frozenset({enhancer.key})))


def _encoder(
    request: ImageRequest,
    params: ImageParams,
    index: int | None,
    uploads: Mapping[str, InputRef],
    pictures: PictureWork,
    needs: tuple[JobId, ...],
) -> StageJob:
    params = msgspec.structs.replace(params, guider=None) if params.guider is not None else params
    work = _work(
        Role.ENCODER,
        height=params.height,
        width=params.width,
        image_pixels=pictures.encoded_pixels,
        picture_tokens=pictures.prompt_tokens,
    )
    return _job(request, index, params, work, needs, uploads)


def _job(
    request: ImageRequest,
    index: int | None,
    params: ImageParams,
    work: Work,
    needs: tuple[JobId, ...],
    uploads: Mapping[str, InputRef] | None = None,
) -> StageJob:
    name = work.role if index is None else f"{work.role}.{index}"
    guider = params.guider if work.role is Role.DIT else None
    kind = params.workflow if guider is None else f"{params.workflow} {guider.name}"
    steered = work.role is Role.DIT and bool(params.controls or params.ip_adapter)
    job = JobId(f"{request.request_id}/{name}")
    spec = JobSpec(job, work.role, work, needs, workflow=kind, is_steered=steered)
    return StageJob(spec, index, params, uploads or {})


def _denoising(params: ImageParams, model: ModelInfo, pictures: PictureWork) -> Work:
    steps = params.num_inference_steps or model.default_steps or FALLBACK_STEPS
    if params.strength is not None:
        steps = max(1, int(steps * params.strength))
    guidance = model.default_guidance if params.guidance_scale is None else params.guidance_scale
    return _work(
        Role.DIT,
        height=params.height,
        width=params.width,
        steps=steps,
        cfg=(guidance or 0.0) > 1.0,
        reference_pixels=pictures.sequence_pixels,
        picture_tokens=pictures.prompt_tokens,
        step_cache=params.step_cache,
        more_passes=_more_passes(params, model, 2 if (guidance or 0.0) > 1.0 else 1),
    )


def _more_passes(params: ImageParams, model: ModelInfo, usual: int) -> float:
    """Beside the ``usual`` ones of each step. A ControlNet runs in each of them."""
    guided = more_passes(params.guider)
    shares = {control.name: control.share for control in model.controls}
    more = sum(max(shares.get(use.name, 0.0), LEAST_SHARE) for use in params.controls)
    more += LEAST_SHARE if params.ip_adapter is not None else 0.0
    return guided + (usual + guided) * more


def steers(upload: str) -> bool:
    return upload.startswith(CONTROL)


def _workflow(model: ModelInfo, name: str) -> Workflow:
    if (found := model.workflow(name)) is not None:
        return found
    known = ", ".join(workflow.name for workflow in model.workflows) or "none"
    raise UnsupportedRequest(f"The model '{model.name}' does no {name}; it does {known}.")
