"""Puts a stage server together from its settings: engine, store, data sockets, introduction."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from math import isqrt
from pathlib import Path
from threading import Condition
from time import monotonic
from typing import TYPE_CHECKING

import msgspec

from stage_server.addresses import check_data_address
from stage_server.command_line import InvalidSettings
from stage_server.data.mailbox import Mailbox
from stage_server.data.pool import BufferPool, pageable
from stage_server.data.store import OutputStore, OutputTooLarge
from stage_server.data_sockets import DataSockets
from stage_server.engine.base import UNKNOWN_LARGEST, Engine, EngineError, LoadError, StageJob
from stage_server.engine.control_source import SteeringSources, named_controls
from stage_server.engine.emulated import EmulatedEngine
from stage_server.runtime.ask import ANSWER_SECONDS, ask_gateways
from stage_server.runtime.baton import Baton
from stage_server.runtime.control import Curve
from stage_server.runtime.core import CoreTimes
from stage_server.runtime.device import ServersOfOneDevice
from stage_server.runtime.link import LinkTimes
from stage_server.runtime.sensors import Sensors
from stage_server.runtime.server import Equipment, StageServer
from stage_server.settings import EngineSettings, Settings, find_profile
from wire.bundle import Bundle
from wire.params import ImageParams, ModelInfo
from wire.to_gateway import Ask, Hello, RoleInfo, ToGateway
from wire.types import MAX_UPSCALE, OPTIONAL, Handle, Role
from wire.version import PROTOCOL

if TYPE_CHECKING:
    from stage_server.engine.diffusers_engine import DiffusersEngine

log = logging.getLogger(__name__)


@contextmanager
def assembled(settings: Settings) -> Iterator[ServersOfOneDevice]:
    """The server of each model; the first one's roles are resident, and their data socket is open.

    Raises ``InvalidSettings``, ``LoadError``, ``BindError``, ``BadEndpoint`` or ``Unwelcome``.
    """
    with _counted(settings) as on_told, _assembled(settings, on_told) as servers:
        yield servers


@contextmanager
def _assembled(settings: Settings, on_told: Callable[[str, ToGateway], None]) -> Iterator[ServersOfOneDevice]:
    keys = settings.curve_keys()
    check_data_address(settings)
    curve = Curve(keys, settings.curve_gateway_key) if keys is not None else None
    ask = question(settings)
    told = ask_gateways(settings.gateway, ask, curve, min(ANSWER_SECONDS, settings.connect_timeout or ANSWER_SECONDS))
    models = _of_each_model(settings)
    engines = [make_engine(each) for each in models]
    for engine, answer in product(engines, told):
        engine.forms.learn(answer.forms.get(engine.describe().key, {}))
    _acquaint(engines, models)
    rooms = [Condition() for _ in models]
    stores = [OutputStore(settings.store_bytes, on_room=partial(_notify, room)) for room in rooms]
    asks = [ask, *(msgspec.structs.replace(ask, name=f"{ask.name}.{k}") for k in range(2, len(models) + 1))]
    identities = [f"{each.name}/{each.incarnation}" for each in asks]
    device = identities[0] if len(models) > 1 else ""
    mailbox = Mailbox()
    lookup = _lookup(stores, mailbox)
    data = DataSockets(settings, lookup, BufferPool(engines[0].host_buffer or pageable), identities)
    mailbox.on_put = data.look_again
    baton = Baton()
    times = CoreTimes(
        link=LinkTimes(give_up=settings.connect_timeout), drain=settings.drain_timeout, stuck=settings.stuck_seconds
    )
    try:
        servers: list[StageServer] = []
        measured: dict[Role, RoleInfo] = {}
        for each, one, engine, store, room in zip(models, asks, engines, stores, rooms, strict=True):
            equipment = _equipment(each, engine, store, room, data, baton)
            equipment = replace(equipment, mailbox=mailbox, on_told=on_told)
            capable = load_roles(engine, store, equipment.largest, each.role, measured)
            measured = measured or capable
            hello = introduction(each, one, engine, engine.describe(), capable, data.endpoint)
            hello = msgspec.structs.replace(hello, device=device, relays=data.relays)
            servers.append(StageServer(hello, settings.gateway, equipment, times, curve))
        process = ServersOfOneDevice(servers)
        yield process
        if process.idle:  # a thread that still computes would find its weights gone
            for engine in engines:
                engine.close()
    finally:
        data.close()


def _equipment(
    settings: Settings, engine: Engine, store: OutputStore, room: Condition, data: DataSockets, baton: Baton
) -> Equipment:
    """Of the server of one model; ``data`` and ``baton`` are those of the process."""
    largest, sensors = largest_outputs(engine, engine.describe()), Sensors(engine.device_uuid)
    tell = _ready_file(settings.ready_file) if settings.ready_file and settings.role else _nobody
    return Equipment(
        engine, store, data.consumer, room, largest, data.find, settings.prefetch, baton, sensors, on_welcome=tell
    )


def _nobody(*_: object) -> None:
    """Is told."""


@contextmanager
def _counted(settings: Settings) -> Iterator[Callable[[str, ToGateway], None]]:
    """What is to be told of every message to the gateway. Raises ``InvalidSettings``."""
    if settings.metrics_port is None:
        yield _nobody
        return
    if find_spec("prometheus_client") is None:
        raise InvalidSettings("--metrics-port needs prometheus-client: pip install 'disagfusion[stage]'")
    from stage_server.metrics import Metrics, served  # here, as nothing else needs prometheus-client

    metrics = Metrics()
    with served(metrics.registry, settings.data_host(), settings.metrics_port) as url:
        log.info("metrics at %s", url)
        yield metrics.note


def _ready_file(path: Path) -> Callable[[], None]:
    """Makes it; it is gone until then. Raises ``InvalidSettings``."""
    try:
        path.touch()
        path.unlink()
    except OSError as error:
        raise InvalidSettings(f"--ready-file {path} cannot be made: {error.strerror}") from error
    return path.touch


def _of_each_model(settings: Settings) -> tuple[Settings, ...]:
    """Host memory for weights is divided evenly where it is emulated; engines that compute have it together."""
    models, limit = settings.of_each_model(), settings.weight_cache_bytes
    if limit is None or settings.engine != "emulated":
        return models
    return tuple(model.model_copy(update={"weight_cache_bytes": limit // len(models)}) for model in models)


def _acquaint(engines: Sequence[Engine], models: Sequence[Settings]) -> None:
    """Each counts what the others have on the device, and loads nothing that one of them has.

    Raises ``InvalidSettings`` where two are one model.
    """
    described = [engine.describe() for engine in engines]
    names = [settings.served_model_name or info.name for settings, info in zip(models, described, strict=True)]
    if len(set(names)) < len(names) or len({info.key for info in described}) < len(described):
        raise InvalidSettings(
            f"--may-load: two of the models are the same, or have one name: {', '.join(names)}; "
            "give each a name of its own, NAME=MODEL"
        )
    for engine in engines:
        others = [other for other in engines if other is not engine]
        if others:
            engine.beside = partial(_resident_bytes, others)
    if len(engines) > 1 and models[0].engine == "diffusers":
        from stage_server.engine.diffusers_engine import DiffusersEngine  # here, as torch comes with it
        from stage_server.engine.further import innermost

        inner = map(innermost, engines)
        DiffusersEngine.acquaint([engine for engine in inner if isinstance(engine, DiffusersEngine)])


def _resident_bytes(engines: Sequence[Engine]) -> int:
    return sum(engine.resident_bytes for engine in engines)


def _lookup(stores: Sequence[OutputStore], mailbox: Mailbox) -> Callable[[Handle], Bundle | None]:
    lookups = [*(store.get for store in stores), mailbox.get]

    def found(handle: Handle) -> Bundle | None:
        return next((bundle for lookup in lookups if (bundle := lookup(handle)) is not None), None)

    return found


def make_engine(settings: Settings) -> Engine:
    """Raises ``LoadError`` or ``InvalidSettings``."""
    if settings.engine == "emulated":
        path = find_profile(settings.profile, _profile_folders())
        return EmulatedEngine(path, settings.time_scale, settings.model, settings.weight_cache_bytes, settings.together)
    from stage_server.engine.adapter_source import named_sources  # here, as ``make_real_engine`` imports

    adapters = named_sources(settings.adapter, settings.adapters_folder)
    controls, ip_adapters = named_controls(settings.control), named_controls(settings.ip_adapter, "--ip-adapter")
    steering = SteeringSources(controls, ip_adapters, settings.image_encoder)
    engine = make_real_engine(settings, settings.together, adapters, settings.adapter_bytes, steering)
    if not (settings.upscaler or settings.enhancer):
        return engine
    from stage_server.further_stages import with_further_stages

    return with_further_stages(engine, settings)


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """What torch and diffusers make as they are imported stays: looking for garbage in it is an eighth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()  # every role change collects garbage, which need not look at all that either


@_nothing_collected()
def make_real_engine(
    settings: EngineSettings,
    together: Mapping[Role, int],
    adapters: Mapping[str, str] | None = None,
    adapter_bytes: int = 0,
    steering: SteeringSources | None = None,
    *,
    loads: bool = True,
) -> DiffusersEngine:
    """``together``: how many jobs of a role may compute at once; ``adapters``: name → source. Without ``loads`` it only
    answers questions. Raises ``LoadError``."""
    # Imported here: torch takes seconds to import, and whoever only asks for --help or emulates needs none of it.
    import torch

    from stage_server.engine.compiled import Compiler
    from stage_server.engine.diffusers_engine import DiffusersEngine

    if settings.log_level != "debug":
        _quiet_libraries()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    accelerated = torch.cuda.is_available()
    device = ("cuda:0" if accelerated else "cpu") if settings.device == "auto" else settings.device
    dtype = ("bfloat16" if device.startswith("cuda") else "float32") if settings.dtype == "auto" else settings.dtype
    return DiffusersEngine(
        settings.model,
        device=device,
        dtype=dtype,
        revision=settings.revision,
        compiler=Compiler() if settings.compile else None,
        attention_backend=settings.attention_backend,
        weight_cache_bytes=settings.weight_cache_bytes,
        together=together,
        adapters=adapters,
        adapter_bytes=adapter_bytes,
        steering=steering,
        formats=settings.quantize,
        offloads=settings.offload,
        step_caches=settings.step_cache,
        vae_tile=settings.vae_tile,
        loads=loads,
    )


def largest_outputs(engine: Engine, info: ModelInfo) -> dict[Role, int]:
    """Bytes of the largest output that a job of each role can have."""
    width, height = largest_size(info)
    workflow = info.workflows[0].name if info.workflows else ""
    # What others' upscalers are given is larger than a file.
    params = ImageParams(workflow=workflow, width=width, height=height, upscale=MAX_UPSCALE)
    try:
        return {role: engine.output_bound(StageJob(role, params)) for role in engine.capable()}
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
    engine: Engine,
    store: OutputStore,
    largest: Mapping[Role, int],
    roles: Iterable[Role],
    like: Mapping[Role, RoleInfo] | None = None,
) -> dict[Role, RoleInfo]:
    """Make ``roles`` resident one by one, so that the time of each is known; that of others is guessed by their bytes.

    Where there are none to load, by what was measured of another model: ``like``.

    Raises ``LoadError``.
    """
    capable = engine.capable()
    held: frozenset[Role] = frozenset()
    for role in roles:
        if role not in capable:
            raise LoadError(f"the model has no role {role} here; its roles are {', '.join(capable)}")
        held |= {role}
        try:
            store.set_roles({role: largest[role] for role in held})
        except OutputTooLarge as error:
            raise LoadError(f"{error}; raise --store-bytes") from error
        log.info("loading %s", role)
        began = monotonic()
        engine.set_roles(held)
        capable[role] = msgspec.structs.replace(engine.capable()[role], load_seconds=monotonic() - began)
        log.info("%s is loaded and warm after %.2f s", role, monotonic() - began)
    return _with_guesses(capable, {role: capable[role] for role in held} or like or {})


def _with_guesses(capable: dict[Role, RoleInfo], measured: Mapping[Role, RoleInfo]) -> dict[Role, RoleInfo]:
    """A role whose load was not measured, and not announced, takes as long per byte as those that were."""
    nbytes = sum(info.weight_bytes for info in measured.values())
    per_byte = sum(info.load_seconds for info in measured.values()) / nbytes if nbytes else 0.0
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
    offered = settings.role if settings.pin else settings.may_take
    capable = {role: cost for role, cost in capable.items() if role in offered}
    info = msgspec.structs.replace(info, **{role.value: None for role in OPTIONAL if role not in capable})
    return Hello(
        protocol=ask.protocol,
        name=ask.name,
        incarnation=ask.incarnation,
        model=msgspec.structs.replace(info, name=settings.served_model_name or info.name),
        device_class=engine.device_class,
        memory_bytes=engine.memory_bytes,
        capable=capable,
        roles=settings.role,
        data_endpoint=endpoint,
        pinned=settings.pin,
        engine=settings.engine,
        warm=tuple(role for role in Role if role in engine.warm),
        public_key=ask.public_key,
        software=engine.software,
        shares_guidance=engine.shares_guidance,
        joins=True,
        moves=True,
        pool=settings.pool,
        forms=engine.forms.seen(),
    )


def _quiet_libraries() -> None:
    """Faults reach us as exceptions; what else the libraries say, and their progress bars, concerns their users."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    for library in (of_diffusers, of_transformers):
        library.set_verbosity_error()
        library.disable_progress_bar()


def _profile_folders() -> list[Path]:
    """Where the scheduler keeps the profiles that come with the project; it is data, none of its code is imported."""
    spec = find_spec("scheduler")
    return [Path(folder) / "profiles" for folder in (spec.submodule_search_locations if spec else None) or ()]


def _notify(room: Condition) -> None:
    with room:
        room.notify_all()
