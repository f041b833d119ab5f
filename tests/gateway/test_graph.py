"""Requests as graphs of stage jobs."""

from __future__ import annotations

import pytest

from gateway.service import graph
from gateway.service.interfaces import UnsupportedRequest
from wire.guiders import GuiderUse
from wire.params import (
    Adapter,
    AdapterUse,
    Control,
    ControlUse,
    Enhancer,
    ImageParams,
    IPAdapterUse,
    Upscaler,
    Workflow,
)
from wire.to_stage import InputRef
from wire.types import Handle, Role

UPLOAD = {"image": InputRef(handle=Handle("h"), endpoint="tcp://127.0.0.1:1")}


def edges(built: graph.Graph) -> dict[str, tuple[str, ...]]:
    return {job.id: job.needs for job in built.spec.jobs}


def test_images_from_text_share_one_encoder_job(request_for, model):
    built = graph.build(request_for(n=2), model(), deadline=30.0)
    assert edges(built) == {
        "r/encoder": (),
        "r/dit.0": ("r/encoder",),
        "r/decoder.0": ("r/dit.0",),
        "r/dit.1": ("r/encoder",),
        "r/decoder.1": ("r/dit.1",),
    }
    assert built.spec.deadline == 30.0
    assert built.spec.model == "tiny@1"
    assert [built.jobs[job].params.seed for job in ("r/dit.0", "r/dit.1")] == [7, 8]


def test_uploaded_pictures_are_encoded_for_each_image(request_for, model):
    images = tuple(ImageParams(workflow="image2image", width=64, height=64, seed=seed) for seed in (1, 2))
    built = graph.build(request_for(images=images), model(), 1.0, UPLOAD)
    assert edges(built)["r/dit.1"] == ("r/encoder.1",)
    assert built.jobs["r/encoder.0"].uploads == UPLOAD
    assert built.jobs["r/encoder.1"].params.seed == 2
    assert built.jobs["r/dit.0"].uploads == {}
    assert built.jobs["r/encoder.0"].spec.work.image_pixels == 64 * 64


def test_with_a_mask_the_decoder_gets_picture_and_mask_too(request_for, model):
    uploads = {name: InputRef(handle=Handle(name), endpoint="tcp://127.0.0.1:1") for name in ("image", "mask_image")}
    images = tuple(ImageParams(workflow="inpainting", width=64, height=32, seed=seed, previews=1) for seed in (1, 2))
    built = graph.build(request_for(images=images), model(), 1.0, uploads)
    for index in range(2):
        assert built.jobs[f"r/encoder.{index}"].uploads == uploads
        assert built.jobs[f"r/dit.{index}"].uploads == {}
        assert built.jobs[f"r/decoder.{index}"].uploads == uploads
        assert built.jobs[f"r/decoder.{index}.preview.0"].uploads == uploads
    assert built.jobs["r/encoder.0"].spec.work.image_pixels == 64 * 32  # a mask is not encoded


def test_every_reference_is_encoded_and_none_decoded(request_for, model):
    names = ("image", "image_1", "image_2")
    uploads = {name: InputRef(handle=Handle(name), endpoint="tcp://127.0.0.1:1") for name in names}
    images = (ImageParams(workflow="image2image", width=64, height=32),)
    built = graph.build(request_for(images=images), model(), 1.0, uploads)
    assert built.jobs["r/encoder.0"].spec.work.image_pixels == 3 * 64 * 32
    assert built.jobs["r/decoder.0"].uploads == {}


def test_the_decoder_reads_the_encoder_where_the_workflow_says_so(request_for, model):
    images = (ImageParams(workflow="inpainting", width=64, height=64),)
    assert edges(graph.build(request_for(images=images), model(), 1.0))["r/decoder.0"] == ("r/encoder", "r/dit.0")


def test_only_the_encoder_sees_the_prompt(request_for, model):
    built = graph.build(request_for(), model(), 1.0)
    texts = {job.spec.role: (job.params.prompt, job.params.negative_prompt) for job in built.jobs.values()}
    assert texts == {Role.ENCODER: ("a red circle", "blue"), Role.DIT: ("", None), Role.DECODER: ("", None)}


@pytest.mark.parametrize(
    ("params", "steps", "cfg"),
    [
        ({}, 12, True),
        ({"num_inference_steps": 4, "guidance_scale": 1.0}, 4, False),
        ({"num_inference_steps": 10, "strength": 0.35}, 3, True),
        ({"num_inference_steps": 1, "strength": 0.1}, 1, True),
    ],
)
def test_work_follows_parameters_and_defaults(request_for, model, params, steps, cfg):
    images = (ImageParams(width=64, height=48, **params),)
    work = graph.build(request_for(images=images), model(), 1.0).jobs["r/dit.0"].spec.work
    assert (work.width, work.height, work.steps, work.cfg) == (64, 48, steps, cfg)


def test_only_denoising_is_told_of_by_its_step_cache(request_for, model):
    images = (ImageParams(width=64, height=64, step_cache="low"),)
    built = graph.build(request_for(images=images), model(), 9.0)
    assert [job.spec.work.step_cache for job in built.jobs.values()] == ["", "low", ""]


def test_a_model_without_defaults_still_has_work(request_for, model):
    built = graph.build(request_for(), model(default_steps=0, default_guidance=None), 1.0)
    work = built.jobs["r/dit.0"].spec.work
    assert (work.steps, work.cfg) == (graph.FALLBACK_STEPS, False)


def test_what_a_model_cannot_do_is_refused_by_name(request_for, model):
    images = (ImageParams(workflow="video", width=64, height=64),)
    with pytest.raises(UnsupportedRequest, match="does no video; it does text2image, image2image"):
        graph.build(request_for(images=images), model(), 1.0)


def test_each_stage_is_told_of_the_adapters_that_change_it(request_for, model):
    style, ink = Adapter("style", "0a", (Role.DIT,)), Adapter("ink", "0b", (Role.ENCODER, Role.DIT))
    uses = (AdapterUse("ink", "0b", 0.5), AdapterUse("style", "0a", 1.0))
    images = (ImageParams(prompt="x", width=64, height=64, previews=1, adapters=uses),)
    built = graph.build(request_for(images=images), model(adapters=(style, ink)), 1.0)
    assert {name: job.params.adapters for name, job in built.jobs.items()} == {
        "r/encoder": uses[:1],
        "r/dit.0": uses,
        "r/decoder.0": (),
        "r/decoder.0.preview.0": (),
    }
    assert {job.id: job.adapters for job in built.spec.jobs} == {
        "r/encoder": {"ink@0b"},
        "r/dit.0": {"ink@0b", "style@0a"},
        "r/decoder.0": frozenset(),
    }
    assert [preview.id for preview in built.jobs["r/dit.0"].spec.previews] == ["r/decoder.0.preview.0"]


def test_an_adapter_that_has_gone_since_is_refused(request_for, model):
    images = (ImageParams(width=64, height=64, adapters=(AdapterUse("style", "0a", 1.0),)),)
    with pytest.raises(UnsupportedRequest, match="has no LoRA 'style' any more"):
        graph.build(request_for(images=images), model(adapters=(Adapter("style", "0b", (Role.DIT,)),)), 1.0)


def test_a_guider_is_for_the_dit_alone_and_counts_in_its_passes(request_for, model):
    def drawn_with(guider: GuiderUse | None) -> graph.Graph:
        images = (ImageParams(width=64, height=64, guidance_scale=3.0, guider=guider),)
        return graph.build(request_for(images=images), model(), 1.0)

    guided = drawn_with(GuiderUse(name="pag", start=0.0, stop=0.5)).jobs
    assert guided["r/encoder"].params.guider is None
    work = guided["r/dit.0"].spec.work
    assert work.passes == 2.5 * work.steps
    plain = drawn_with(None).jobs
    assert not guided["r/dit.0"].spec.is_like(plain["r/dit.0"].spec)
    assert guided["r/decoder.0"].spec.is_like(plain["r/decoder.0"].spec)


@pytest.mark.parametrize("reader", [Role.ENCODER, Role.DIT])
def test_pictures_that_steer_go_to_the_stage_that_reads_them(request_for, model, reader):
    inputs = ("control_image",) if reader is Role.ENCODER else ("prompt",)
    steered = Workflow("controlnet_text2image", ("prompt", "control_image"), encoder_inputs=inputs)
    uses = (ControlUse("canny"),)
    images = tuple(
        ImageParams(workflow=steered.name, width=64, height=32, guidance_scale=3.0, seed=seed, controls=uses)
        for seed in (1, 2)
    )
    uploads = {"control_image": UPLOAD["image"]}
    built = graph.build(
        request_for(images=images), model(workflows=(steered,), controls=(Control("canny", 0.25),)), 1.0, uploads
    ).jobs
    dit = built["r/dit.0"]
    assert dit.uploads == (uploads if reader is Role.DIT else {})
    assert dit.spec.work.passes == 2.5 * dit.spec.work.steps
    encoders = [job for job in built.values() if job.spec.role is Role.ENCODER]
    assert [job.uploads for job in encoders] == ([{}] if reader is Role.DIT else [uploads, uploads])
    assert encoders[0].spec.work.image_pixels == (0 if reader is Role.DIT else 64 * 32)
    assert built["r/decoder.0"].uploads == {}


@pytest.mark.parametrize("steered", [{"controls": (ControlUse("canny"),)}, {"ip_adapter": IPAdapterUse("style")}, {}])
def test_jobs_that_pictures_steer_say_so_however_few_passes_their_guider_takes(request_for, model, steered):
    guider = GuiderUse(name="cfg", stop=0.5)
    images = (ImageParams(width=64, height=64, guidance_scale=3.0, guider=guider, **steered),)
    jobs = graph.build(request_for(images=images), model(), 1.0).jobs.values()
    assert [job.spec.role for job in jobs if job.spec.is_steered] == ([Role.DIT] if steered else [])


def test_a_guider_that_stops_at_once_leaves_one_pass_of_each_step(request_for, model):
    """So close to the first step that a share of all steps cannot tell it from that."""
    guider = GuiderUse(name="cfg", stop=1e-20)
    images = (ImageParams(width=64, height=64, guidance_scale=3.0, guider=guider),)
    work = graph.build(request_for(images=images), model(), 1.0).jobs["r/dit.0"].spec.work
    assert work.passes == work.steps


# --- upscaling --------------------------------------------------------------------------------------------------------

LARGER = Upscaler("swin", "0d", 2)


def test_an_upscaled_picture_is_passed_on_and_delivered_by_the_upscaler(request_for, model):
    images = tuple(ImageParams(width=64, height=32, seed=seed, upscale=2, previews=1) for seed in (1, 2))
    built = graph.build(request_for(images=images), model(upscaler=LARGER), 1.0)
    assert edges(built) == {
        "r/encoder": (),
        "r/dit.0": ("r/encoder",),
        "r/decoder.0": ("r/dit.0",),
        "r/upscaler.0": ("r/decoder.0",),
        "r/dit.1": ("r/encoder",),
        "r/decoder.1": ("r/dit.1",),
        "r/upscaler.1": ("r/decoder.1",),
    }
    assert [job.id for job in built.spec.jobs if job.is_final] == ["r/upscaler.0", "r/upscaler.1"]
    told = {job.spec.id for job in built.jobs.values() if job.params.upscale}
    assert told == {"r/decoder.0", "r/upscaler.0", "r/decoder.1", "r/upscaler.1"}  # a preview is a file, and smaller
    last = built.jobs["r/upscaler.1"]
    assert (last.spec.work.width, last.spec.work.height, last.image, last.params.prompt) == (64, 32, 1, "")


def test_the_upscaler_is_sent_to_servers_that_have_this_very_one_whatever_loras_are_asked_for(request_for, model):
    style = Adapter("style", "0a", (Role.DIT,))
    images = (ImageParams(width=64, height=64, upscale=2, adapters=(AdapterUse("style", "0a", 1.0),)),)
    built = graph.build(request_for(images=images), model(upscaler=LARGER, adapters=(style,)), 1.0)
    needed = {job.role: job.adapters for job in built.spec.jobs}
    assert needed[Role.UPSCALER] == {LARGER.key}
    assert needed[Role.DIT] == {style.key}
    assert not needed[Role.DECODER]


@pytest.mark.parametrize("upscaler", [None, Upscaler("other", "0e", 4)])
def test_an_upscaler_that_has_gone_meanwhile_is_told(request_for, model, upscaler):
    images = (ImageParams(width=64, height=64, upscale=2),)
    with pytest.raises(UnsupportedRequest, match="has no such upscaler any more") as refused:
        graph.build(request_for(images=images), model(upscaler=upscaler), 1.0)
    assert refused.value.param == "upscale"


def test_a_picture_that_prompts_is_read_by_the_encoder_and_costs_a_little_in_each_pass(request_for, model):
    prompted = Workflow("ip_adapter_text2image", ("prompt", "ip_adapter_image"), encoder_inputs=("ip_adapter_image",))
    use = IPAdapterUse("style")
    images = (ImageParams(workflow=prompted.name, width=64, height=32, guidance_scale=3.0, ip_adapter=use),)
    uploads = {"ip_adapter_image": UPLOAD["image"]}
    built = graph.build(request_for(images=images), model(workflows=(prompted,)), 1.0, uploads).jobs
    assert (built["r/encoder.0"].uploads, built["r/dit.0"].uploads) == (uploads, {})
    assert built["r/encoder.0"].spec.work.image_pixels == 0  # another encoder reads it than that of the autoencoder
    assert built["r/dit.0"].spec.work.more_passes > 0


# --- enhancing --------------------------------------------------------------------------------------------------------

WRITER = Enhancer("writer", "0e", 64)


def test_one_enhancer_job_comes_before_every_encoder_job(request_for, model):
    built = graph.build(request_for(n=2, enhance=True), model(enhancer=WRITER), 1.0)
    assert list(edges(built).items())[:2] == [("r/enhancer", ()), ("r/encoder", ("r/enhancer",))]
    job = built.jobs["r/enhancer"]
    assert job.spec.adapters == {WRITER.key}
    assert job.spec.work.text_tokens == 128  # 64, and 12 // 4 of the prompt, rounded up
    assert job.params == ImageParams(prompt="a red circle", seed=7)

    images = tuple(ImageParams(workflow="image2image", width=64, height=64, seed=seed) for seed in (1, 2))
    built = graph.build(request_for(images=images, enhance=True), model(enhancer=WRITER), 1.0, UPLOAD)
    assert edges(built)["r/encoder.0"] == edges(built)["r/encoder.1"] == ("r/enhancer",)


def test_what_it_wrote_is_told_to_encoder_jobs_and_to_no_other(request_for, model):
    built = graph.build(request_for(n=2, enhance=True), model(enhancer=WRITER), 1.0)
    told = graph.enhanced(built, "a crimson disc")
    assert {name: job.params.prompt for name, job in told.jobs.items() if job.params.prompt} == {
        "r/enhancer": "a red circle",
        "r/encoder": "a crimson disc",
    }
    assert told.jobs["r/encoder"].params.negative_prompt == "blue"
    assert told.spec is built.spec


def test_where_it_is_known_what_it_would_write_it_has_no_job(request_for, model):
    plain = graph.build(request_for(), model(), 1.0)
    built = graph.build(request_for(enhance=True), model(enhancer=WRITER), 1.0, rewritten="a crimson disc")
    assert edges(built) == edges(plain)
    assert built.jobs["r/encoder"].params.prompt == "a crimson disc"


def test_an_enhancer_that_has_gone_meanwhile_is_told(request_for, model):
    with pytest.raises(UnsupportedRequest, match="has no enhancer any more") as refused:
        graph.build(request_for(enhance=True), model(), 1.0)
    assert refused.value.param == "enhance"
