"""Puts a stage server together from its settings: engine, store, data sockets, introduction."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from math import isqrt
from pathlib import Path
from threading import Condition
from time import monotonic
from typing import TYPE_CHECKING

import msgspec

from stage_server.addresses import check_data_address
from stage_server.data.consumer import Consumer
from stage_server.data.holder import Holder
from stage_server.data.store import OutputStore, OutputTooLarge
from stage_server.engine.base import Engine, EngineError, LoadError, StageJob
from stage_server.engine.emulated import EmulatedEngine
from stage_server.runtime.ask import ANSWER_SECONDS, ask_gateway
from stage_server.runtime.control import Curve
from stage_server.runtime.core import CoreTimes
from stage_server.runtime.link import LinkTimes
from stage_server.runtime.server import Equipment, StageServer
from stage_server.settings import EngineSettings, InvalidSettings, Settings, find_profile
from wire.params import ImageParams, ModelInfo
from wire.to_gateway import Ask, Hello, RoleInfo
from wire.types import Role
from wire.version import PROTOCOL

if TYPE_CHECKING:
    from stage_server.engine.diffusers_engine import DiffusersEngine

UNKNOWN_LARGEST = 4
"""A model that names no limit is taken to draw at most so many times the pixels of its default size."""

_WILDCARDS = ("tcp://*:", "tcp://0.0.0.0:", "tcp://[::]:")

log = logging.getLogger(__name__)


@contextmanager
def assembled(settings: Settings) -> Iterator[StageServer]:
    """A server whose roles are resident and whose data socket is open.

    Raises ``InvalidSettings``, ``LoadError``, ``BindError``, ``BadEndpoint`` or ``Unwelcome``.
    """
    keys = settings.curve_keys()
    check_data_address(settings)
    curve = Curve(keys, settings.curve_gateway_key) if keys is not None else None
    ask = question(settings)
    ask_gateway(settings.gateway, ask, curve, min(ANSWER_SECONDS, settings.connect_timeout or ANSWER_SECONDS))
    engine = make_engine(settings)
    room = Condition()
    store = OutputStore(settings.store_bytes, on_room=lambda: _notify(room))
    holder = Holder(
        settings.data_bind,
        store.get,
        keys=keys,
        allow_plaintext=settings.insecure,
        identity=f"{ask.name}/{ask.incarnation}",
    )
    consumer = Consumer(keys=keys, local=store.get)
    try:
        endpoint = _advertised(settings, holder.endpoint)
        info = engine.describe()
        equipment = Equipment(engine, store, consumer, room, largest_outputs(engine, info), keys)
        measured = load_roles(engine, store, equipment.largest, settings.role)
        hello = introduction(settings, ask, engine, info, measured, endpoint)
        link = LinkTimes(give_up=settings.connect_timeout)
        times = CoreTimes(link=link, drain=settings.drain_timeout)
        server = StageServer(hello, settings.gateway, equipment, times, curve)
        yield server
        if server.idle:  # a thread that still computes would find its weights gone
            engine.close()
    finally:
        consumer.close()
        holder.close()


def make_engine(settings: Settings) -> Engine:
    """Raises ``LoadError`` or ``InvalidSettings``."""
    if settings.engine == "emulated":
        path = find_profile(settings.profile, _profile_folders())
        return EmulatedEngine(path, settings.time_scale, settings.model)
    return make_real_engine(settings)


def make_real_engine(settings: EngineSettings) -> DiffusersEngine:
    """Raises ``LoadError``."""
    # Imported here: torch takes seconds to import, and whoever only asks for --help or emulates needs none of it.
    import torch

    from stage_server.engine.diffusers_engine import DiffusersEngine

    if settings.log_level != "debug":
        _quiet_libraries()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    accelerated = torch.cuda.is_available()
    device = ("cuda:0" if accelerated else "cpu") if settings.device == "auto" else settings.device
    dtype = ("bfloat16" if device.startswith("cuda") else "float32") if settings.dtype == "auto" else settings.dtype
    engine = DiffusersEngine(
        settings.model,
        device=device,
        dtype=dtype,
        revision=settings.revision,
        compile=settings.compile,
        attention_backend=settings.attention_backend,
        weight_cache_bytes=settings.weight_cache_bytes,
    )
    gc.freeze()  # every role change collects garbage, which need not look at all that torch and diffusers have made
    return engine


def largest_outputs(engine: Engine, info: ModelInfo) -> dict[Role, int]:
    """Bytes of the largest output that a job of each role can have."""
    width, height = largest_size(info)
    params = ImageParams(workflow=info.workflows[0].name if info.workflows else "", width=width, height=height)
    try:
        return {role: engine.output_bound(StageJob(role, (params,), ({},))) for role in Role}
    except EngineError as error:
        raise LoadError(f"the size of {info.name}'s outputs cannot be foreseen: {error}") from error


def largest_size(info: ModelInfo) -> tuple[int, int]:
    """Width and height, in pixels, of the largest picture that is served; of several the one nearest to a square."""
    step, pixels = info.size_multiple, _max_pixels(info)
    sizes = ((width, pixels // (width * step) * step) for width in range(largest_side(info), 0, -step))
    return max(sizes, key=lambda size: size[0] * size[1])


def largest_side(info: ModelInfo) -> int:
    """Pixels, of the largest square picture that is served."""
    return max(1, isqrt(_max_pixels(info)) // info.size_multiple) * info.size_multiple


def _max_pixels(info: ModelInfo) -> int:
    width, height = info.default_size
    return info.max_pixels or UNKNOWN_LARGEST * width * height


def load_roles(
    engine: Engine, store: OutputStore, largest: Mapping[Role, int], roles: Iterable[Role]
) -> dict[Role, RoleInfo]:
    """Make ``roles`` resident one by one, so that the time of each is known; that of others is guessed by their bytes.

    Raises ``LoadError``.
    """
    capable = engine.capable()
    held: frozenset[Role] = frozenset()
    for role in roles:
        if role not in capable:
            raise LoadError(f"the model cannot be split into a {role}; its roles are {', '.join(capable)}")
        held |= {role}
        try:
            store.set_roles({role: largest[role] for role in held})
        except OutputTooLarge as error:
            raise LoadError(f"{error}; raise --store-bytes") from error
        log.info("loading %s", role)
        began = monotonic()
        engine.set_roles(held)
        capable[role] = msgspec.structs.replace(capable[role], load_seconds=monotonic() - began)
        log.info("%s is loaded and warm after %.2f s", role, monotonic() - began)
    return _with_guesses(capable, held)


def _with_guesses(capable: dict[Role, RoleInfo], held: frozenset[Role]) -> dict[Role, RoleInfo]:
    """A role whose load was not measured, and not announced, takes as long per byte as those that were."""
    nbytes = sum(capable[role].weight_bytes for role in held)
    per_byte = sum(capable[role].load_seconds for role in held) / nbytes if nbytes else 0.0
    return {
        role: info if info.load_seconds else msgspec.structs.replace(info, load_seconds=per_byte * info.weight_bytes)
        for role, info in capable.items()
    }


def question(settings: Settings) -> Ask:
    return Ask(
        protocol=PROTOCOL,
        name=settings.name or f"{socket.gethostname()}-{os.getpid()}",
        incarnation=secrets.token_hex(8),
        public_key=settings.curve_public_key,
    )


def introduction(
    settings: Settings, ask: Ask, engine: Engine, info: ModelInfo, capable: dict[Role, RoleInfo], endpoint: str
) -> Hello:
    return Hello(
        protocol=ask.protocol,
        name=ask.name,
        incarnation=ask.incarnation,
        model=msgspec.structs.replace(info, name=settings.served_model_name or info.name),
        device_class=engine.device_class,
        memory_bytes=engine.memory_bytes,
        capable={role: cost for role, cost in capable.items() if not settings.pin or role in settings.role},
        roles=settings.role,
        data_endpoint=endpoint,
        pinned=settings.pin,
        engine=settings.engine,
        public_key=ask.public_key,
    )


def _quiet_libraries() -> None:
    """Faults reach us as exceptions; what else the libraries say, and their progress bars, concerns their users."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    for library in (of_diffusers, of_transformers):
        library.set_verbosity_error()
        library.disable_progress_bar()


def _advertised(settings: Settings, bound: str) -> str:
    if settings.data_advertise:
        host, _, port = settings.data_advertise.rpartition(":")
        return settings.data_advertise if port not in ("*", "0") else f"{host}:{bound.rpartition(':')[2]}"
    if bound.startswith(_WILDCARDS):
        raise InvalidSettings(f"--data-bind {settings.data_bind} is every address of this machine: name the one that "
                              "others reach with --data-advertise tcp://HOST:*")  # fmt: skip
    return bound


def _profile_folders() -> list[Path]:
    """Where the scheduler keeps the profiles that come with the project; it is data, none of its code is imported."""
    spec = find_spec("scheduler")
    return [Path(folder) / "profiles" for folder in (spec.submodule_search_locations if spec else None) or ()]


def _notify(room: Condition) -> None:
    with room:
        room.notify_all()
