"""What the emulated engine reads and makes, as its profile says: names, sizes and workflows, and no numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from threading import Lock

from stage_server.engine.base import IMAGE_PORT, PIXELS, EngineError, NamedValues, Outputs
from stage_server.engine.blank_pictures import blank_png, inscribed
from stage_server.engine.profile import Profile
from wire.params import Enhancer, ImageParams, Upscaler, Workflow
from wire.types import REQUIRED, STAGES, Role
from wire.values import Tensor, Value

PROMPT_DIGEST = "prompt_digest"
"""Crosses from encoder to dit to decoder beside the tensors: the gateway tells only the encoder the prompt."""

REWRITTEN = ", rewritten"
"""What the emulation's enhancer adds to a prompt."""

NEXT = {Role.ENCODER: Role.DIT, Role.DIT: Role.DECODER}

EMULATED_TOKENS = 64
"""That the emulation's enhancer is taken to write."""

EDITS = "image_conditioned"
MAX_REFERENCES = 16

TEXT_INPUTS = ("prompt", "height", "width", "num_inference_steps", "guidance_scale", "seed", "output_format")


def blank_outputs(profile: Profile, role: Role, params: ImageParams, given: NamedValues) -> Outputs:
    """Tensors of the true sizes, or the picture, blank but for its code; ``given`` are the job's inputs."""
    if STAGES[role].is_told:
        return {}
    digest = prompt_digest(params.prompt) if role is Role.ENCODER else str(given[PROMPT_DIGEST])
    if role is Role.DECODER and params.upscale:
        pixels = Tensor("uint8", (params.height, params.width, 3), _zeros.view(_raw_bytes(params)))
        return {Role.UPSCALER: {PIXELS: pixels, PROMPT_DIGEST: digest}}
    if STAGES[role].makes_pictures:
        width, height = _size_made(profile, role, params)
        png = inscribed(
            blank_png(width, height, picture_code(params.seed, digest)),
            {"seed": str(params.seed), PROMPT_DIGEST: digest},
        )
        return {IMAGE_PORT: {"image": png, "format": "png", "width": width, "height": height}}
    ports: dict[str, dict[str, Value]] = {}
    for tensor in profile.costs(role).outputs:
        shape = tensor.resolve(profile.model.extents(params))
        data = _zeros.view(tensor.nbytes(profile.model.extents(params)))
        ports.setdefault(tensor.port, {})[tensor.name] = Tensor(tensor.dtype, shape, data)
    ports.setdefault(NEXT[role], {})[PROMPT_DIGEST] = digest
    return ports


def picture_bound(profile: Profile, role: Role, params: ImageParams) -> int:
    """Bytes that a picture takes which a job of the role makes; 0 of others."""
    if not STAGES[role].makes_pictures:
        return 0
    passed_on = _raw_bytes(params) if role is Role.DECODER and params.upscale else 0
    return max(passed_on, len(blank_png(*_size_made(profile, role, params))))


def emulated_upscaler(profile: Profile) -> Upscaler | None:
    """As servers introduce it."""
    if profile.upscaler is None:
        return None
    factor = profile.upscaler.factor
    return Upscaler("emulated", hashlib.sha256(b"emulated %d" % factor).hexdigest()[:12], factor)


def emulated_enhancer(profile: Profile) -> Enhancer | None:
    """As servers introduce it."""
    if profile.enhancer is None:
        return None
    return Enhancer("emulated", hashlib.sha256(REWRITTEN.encode()).hexdigest()[:12], EMULATED_TOKENS)


def _size_made(profile: Profile, role: Role, params: ImageParams) -> tuple[int, int]:
    """Width and height of the picture that a job of the role makes."""
    factor = profile.upscaler.factor if role is Role.UPSCALER and profile.upscaler is not None else 1
    return params.width * factor, params.height * factor


def _raw_bytes(params: ImageParams) -> int:
    return params.width * params.height * 3


def check_inputs(profile: Profile, role: Role, inputs: NamedValues) -> None:
    """An emulation that forgave missing inputs would hide faults of everything around it."""
    wanted = {
        tensor.name for before in REQUIRED for tensor in profile.costs(before).outputs if Role(tensor.port) is role
    }
    wanted |= {PIXELS} if role is Role.UPSCALER else set()
    wanted |= {PROMPT_DIGEST} if STAGES[role].reads else set()
    if missing := wanted - set(inputs):
        raise EngineError(f"the {role} job lacks the inputs {', '.join(sorted(missing))}")


def workflows(profile: Profile) -> tuple[Workflow, ...]:
    edges = [(Role.ENCODER, Role.DIT), (Role.DIT, Role.DECODER)]
    if any(tensor.port == "decoder" for tensor in profile.costs(Role.ENCODER).outputs):
        edges.append((Role.ENCODER, Role.DECODER))
    inputs: Mapping[str, tuple[str, ...]] = {
        "text2image": TEXT_INPUTS,
        "image2image": (*TEXT_INPUTS, "image", "strength"),
    }
    plain = tuple(Workflow(name, taken, tuple(edges), encoder_inputs=_encoded(taken)) for name, taken in inputs.items())
    references = profile.model.references
    if references is None:
        return plain
    taken = (*TEXT_INPUTS, "image")
    edits = Workflow(EDITS, taken, tuple(edges), MAX_REFERENCES, references, _encoded(taken))
    return (*plain, edits)


def _encoded(taken: tuple[str, ...]) -> tuple[str, ...]:
    """Its outputs have the prompt's digest in them, and their sizes may follow from the picture's."""
    return tuple(name for name in taken if name in ("prompt", "height", "width", "image"))


def prompt_digest(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def picture_code(seed: int | None, digest: str) -> bytes:
    """What a picture's first pixels say: eight bytes of the seed, eight of the prompt's digest."""
    return ((seed or 0) % 2**64).to_bytes(8, "big") + bytes.fromhex(digest).rjust(8, b"\0")


class _Zeros:
    """One buffer that all blank tensors share; the system backs it with a single page of zeros until written."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._buffer = memoryview(b"")

    def view(self, nbytes: int) -> memoryview:
        with self._lock:
            if nbytes > self._buffer.nbytes:
                self._buffer = memoryview(bytes(nbytes))
            return self._buffer[:nbytes]


_zeros = _Zeros()
