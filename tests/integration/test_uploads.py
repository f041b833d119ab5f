"""Uploaded pictures lie with the gateway, and encoders fetch them there."""

from __future__ import annotations

from gateway.service.interfaces import ImageRequest, PromptRead
from wire.params import ImageParams
from wire.types import Role


async def test_each_image_of_an_edit_has_an_encoding_of_its_own(service):
    await service.serve_all(encoder=(Role.ENCODER,), rest=(Role.DIT, Role.DECODER))
    images = tuple(
        ImageParams(
            workflow="image2image",
            prompt="a b c",
            max_sequence_length=2,
            width=64,
            height=64,
            seed=seed,
            num_inference_steps=2,
            strength=0.5,
        )
        for seed in (1, 2)
    )
    request = ImageRequest("r", "slow", images, 30.0, uploads={"image": b"\x89PNG" + bytes(3_000_000)})
    finished = await service.gateway.dispatcher.generate(request)
    assert len(finished.images) == 2
    assert finished.prompt == PromptRead(3, 1)
    assert [(stage.role, stage.image) for stage in finished.stages if stage.role == Role.ENCODER] == [
        (Role.ENCODER, 0),
        (Role.ENCODER, 1),
    ]
    assert service.gateway.room.nbytes == 0
    await service.all_stores_empty()
