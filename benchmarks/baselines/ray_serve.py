"""Ray Serve with a deployment for each of the same three stages: a baseline of row 8. Needs the extra ``bench-ray``.

python -m benchmarks.baselines.ray_serve PORT [--threads N]

Each stage is a replica of its own that batches what waits for it, up to ``MOST``, and waits for nobody. Responses are
handed on as references, so that tensors go from stage to stage and not through the ingress.
"""

# Without postponed annotations: FastAPI could not resolve them in a class that Ray has pickled.

import argparse
import base64
import io
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, ZImagePipeline
from fastapi import FastAPI
from ray import serve
from ray.serve.schema import LoggingConfig

from benchmarks.baselines.asked import MODEL, MOST, Body

UNDER_WAY = 64
"""Requests that a replica takes at a time; the rest waits in its handle."""


Embedded = tuple[torch.Tensor, torch.Tensor]
"""Of the prompt, and of the empty one."""


@serve.deployment(max_ongoing_requests=UNDER_WAY, ray_actor_options={"num_cpus": 0})
class Encoder:
    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._pipeline = ZImagePipeline.from_pretrained(MODEL, transformer=None, vae=None, dtype=torch.float32)

    @serve.batch(max_batch_size=MOST, batch_wait_timeout_s=0.0)
    async def __call__(self, prompts: list[str]) -> list[Embedded]:
        with torch.inference_mode():
            positive, negative = self._pipeline.encode_prompt(prompts, device="cpu")
        return list(zip(positive, negative, strict=True))


@serve.deployment(max_ongoing_requests=UNDER_WAY, ray_actor_options={"num_cpus": 0})
class Denoiser:
    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        parts: dict[str, Any] = {"vae": None, "text_encoder": None, "tokenizer": None}
        self._pipeline = ZImagePipeline.from_pretrained(MODEL, **parts, dtype=torch.float32)
        self._pipeline.set_progress_bar_config(disable=True)
        channels = AutoencoderKL.load_config(MODEL, subfolder="vae")["block_out_channels"]
        self._pipeline.vae_scale_factor = 2 ** (len(channels) - 1)

    @serve.batch(max_batch_size=MOST, batch_wait_timeout_s=0.0)
    async def __call__(self, bodies: list[Body], embedded: list[Embedded]) -> list[torch.Tensor]:
        return _by_kind(bodies, [body.kind for body in bodies], embedded, self._denoise)

    @torch.inference_mode()
    def _denoise(self, bodies: Sequence[Body], embedded: Sequence[Embedded]) -> Sequence[torch.Tensor]:
        width, height = map(int, bodies[0].size.split("x"))
        made: Any = self._pipeline(
            prompt_embeds=[positive for positive, _ in embedded],
            negative_prompt_embeds=[negative for _, negative in embedded],
            width=width,
            height=height,
            num_inference_steps=bodies[0].num_inference_steps,
            guidance_scale=bodies[0].guidance_scale,
            generator=[_generator(body.seed) for body in bodies],
            output_type="latent",
        )
        return tuple(made.images)


@serve.deployment(max_ongoing_requests=UNDER_WAY, ray_actor_options={"num_cpus": 0})
class Decoder:
    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        parts: dict[str, Any] = {"transformer": None, "text_encoder": None, "tokenizer": None}
        self._pipeline = ZImagePipeline.from_pretrained(MODEL, **parts, dtype=torch.float32)

    @serve.batch(max_batch_size=MOST, batch_wait_timeout_s=0.0)
    async def __call__(self, latents: list[torch.Tensor]) -> list[bytes]:
        return _by_kind(latents, [each.shape for each in latents], latents, self._decode)

    @torch.inference_mode()
    def _decode(self, latents: Sequence[torch.Tensor], _: Sequence[torch.Tensor]) -> Sequence[bytes]:
        vae = self._pipeline.vae
        decoded = vae.decode(torch.stack(list(latents)) / vae.config.scaling_factor + vae.config.shift_factor)
        found = []
        for picture in self._pipeline.image_processor.postprocess(decoded.sample):
            buffer = io.BytesIO()
            picture.save(buffer, "PNG", compress_level=1)
            found.append(buffer.getvalue())
        return found


def _by_kind(
    items: Sequence[Any],
    kinds: Sequence[Any],
    more: Sequence[Any],
    call: Callable[[list[Any], list[Any]], Sequence[Any]],
) -> list[Any]:
    """One call for each kind; results in the order of the items."""
    found: dict[int, Any] = {}
    for kind in dict.fromkeys(kinds):
        at = [index for index, each in enumerate(kinds) if each == kind]
        results = call([items[index] for index in at], [more[index] for index in at])
        found.update(zip(at, results, strict=True))
    return [found[index] for index in range(len(items))]


def _generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    if seed is None:
        generator.seed()
        return generator
    return generator.manual_seed(seed)


app = FastAPI()


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
@serve.ingress(app)
class Ingress:
    def __init__(self, encoder: Any, denoiser: Any, decoder: Any) -> None:
        self._encoder, self._denoiser, self._decoder = encoder, denoiser, decoder

    @app.post("/v1/images/generations")
    async def generate(self, body: Body) -> dict[str, Any]:
        latents = self._denoiser.remote(body, self._encoder.remote(body.prompt))
        picture = await self._decoder.remote(latents)
        return {"created": int(time.time()), "data": [{"b64_json": base64.b64encode(picture).decode()}]}

    @app.get("/readyz")
    async def ready(self) -> dict[str, str]:
        return {"status": "ready"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="that torch computes with in each stage")
    chosen = parser.parse_args()
    stages = [stage.bind(chosen.threads) for stage in (Encoder, Denoiser, Decoder)]
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(http_options={"host": "127.0.0.1", "port": chosen.port}, logging_config=quiet)
    serve.run(Ingress.bind(*stages))
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()


if __name__ == "__main__":
    main()
