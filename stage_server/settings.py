"""Every setting of a stage server, from the command line or ``DISAGFUSION_STAGE_*`` variables, read once at start.

The only module of the stage server that looks at the environment, with ``profiling/settings.py``, apart from the
libraries' own variables (``HF_TOKEN`` for private models on the hub, ``OTEL_*``, ``CUDA_VISIBLE_DEVICES``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from stage_server.command_line import InvalidSettings, read_as
from stage_server.further_settings import OF_NONE, FurtherSettings
from stage_server.offload import Offload
from stage_server.offload import parsed as parsed_offloads
from stage_server.setting_values import ControlAddress, DataAddress, Name, by_name, host_of
from stage_server.step_caches import CacheHook, StepCache, parse_levels
from stage_server.weight_formats import WeightFormat, parsed
from wire.bounded import MAX_RELAYS
from wire.security import CurveKeys, is_loopback, valid_key
from wire.types import Role

MOST_MODELS = 4
"""Of one server: the role planner combines no more."""

MOST_GATEWAYS = 32

MOST_TOGETHER = 64
"""Jobs of one role at once: more than pays on any device."""

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_COMPUTING = {
    ("--adapter", "--adapters-folder"): "no weights",
    ("--control", "--ip-adapter"): "no weights",
    ("--quantize",): "no weights",
    ("--offload",): "no weights",
    ("--step-cache",): "the levels that its profile names in [dit]",
}
"""Options of engines that compute, and what an emulation has instead."""


class EngineSettings(BaseSettings):
    """What computes. A field's description is its line in ``--help``."""

    model_config = SettingsConfigDict(env_prefix="DISAGFUSION_STAGE_", frozen=True, hide_input_in_errors=True)

    model: str = Field("", description="bundled name, folder or hub id of the model; optional with a profile")
    device: str = Field("auto", description="cuda:0, cpu, …; auto takes the first GPU if there is one")
    dtype: str = Field("auto", description="bfloat16, float16 or float32; auto: bfloat16 on a GPU, else float32")
    revision: str | None = Field(None, description="branch, tag or commit of a model on the hub")
    compile: bool = Field(
        False, description="compile the transformer with torch.compile, in the background, for fast requests"
    )
    attention_backend: str | None = Field(
        None, description="diffusers' name of an attention backend; auto: what is fastest here"
    )
    quantize: Annotated[dict[str, WeightFormat], NoDecode] = Field(
        {},
        description="formats of weights, COMPONENT=FORMAT,… such as transformer=int8,text_encoder=nf4; formats: "
        f"{', '.join(WeightFormat)} (none takes one of the model's serving.json back)",
    )
    offload: Annotated[dict[str, Offload], NoDecode] = Field(
        {},
        description="components whose weights wait in host memory and come to the device in parts, for their calls: "
        f"COMPONENT=LEVEL,… such as transformer=block; levels: {', '.join(Offload)} (none takes one of the model's "
        "serving.json back)",
    )
    vae_tile: Annotated[int, Field(ge=64)] | Literal["auto"] | None = Field(
        None,
        description="side of the tiles, in pixels, in which larger pictures pass through the VAE, one picture at a "
        "time; takes less memory and changes pictures slightly; auto: the largest for which the device is large enough",
    )
    step_cache: Annotated[dict[str, StepCache | None], NoDecode] = Field(
        {},
        description="levels that requests may name, at which steps reuse what earlier ones computed: LEVEL=CACHE,… "
        f"such as medium=first-block:threshold=0.1; caches: {', '.join(CacheHook)} (none takes one of the model's "
        "serving.json back)",
    )
    threads: int | None = Field(None, ge=1, description="processor threads that torch may use")
    weight_cache_bytes: int | None = Field(
        None,
        ge=0,
        description="host memory for weights of roles that were held or may come, so that they come quickly; "
        "0 keeps none; unset: a quarter of what is free at start",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what goes to stderr")
    log_format: Literal["text", "json"] = Field("text", description="of the log; json: an object on each line")

    @field_validator("quantize", mode="before")
    @classmethod
    def _by_component(cls, given: object) -> object:
        named = by_name(given, "COMPONENT=FORMAT, such as transformer=int8", "a component")
        return given if named is None else parsed(named)

    @field_validator("offload", mode="before")
    @classmethod
    def _by_offloaded(cls, given: object) -> object:
        named = by_name(given, "COMPONENT=LEVEL, such as transformer=block", "a component")
        return given if named is None else parsed_offloads(named)

    @field_validator("step_cache", mode="before")
    @classmethod
    def _by_level(cls, given: object) -> object:
        named = by_name(given, "LEVEL=CACHE, such as medium=first-block:threshold=0.1", "a level")
        return given if named is None else parse_levels(named)


class Settings(FurtherSettings, EngineSettings):
    """Of a server."""

    role: Annotated[tuple[Role, ...], NoDecode] = Field(
        min_length=1,
        description="what to serve at start: encoder, dit, decoder, upscaler, enhancer; repeatable or comma-separated",
    )
    may_take: Annotated[tuple[Role, ...], NoDecode] = Field(
        tuple(Role), min_length=1, description="roles that the gateway may give this server; all unless named"
    )
    gateway: Annotated[tuple[ControlAddress, ...], NoDecode] = Field(
        min_length=1,
        max_length=MOST_GATEWAYS,
        description="control address of the gateway, tcp://HOST:PORT; repeatable or comma-separated: "
        "it belongs to one of them at a time, and goes to the next when that is lost",
    )

    engine: Literal["diffusers", "emulated"] = Field("diffusers", description="diffusers computes, emulated waits")
    profile: str = Field("", description="with the emulated engine: file or bundled name of a cost profile")
    time_scale: float = Field(1.0, gt=0, description="with the emulated engine: 0.1 makes all ten times faster")
    adapter: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="LoRA that requests may name: NAME=FILE, NAME=FOLDER or NAME=HUB_ID[@REVISION][:FILE]; repeatable",
    )
    adapters_folder: str = Field("", description="folder whose LoRA files, and folders with one, may be named")
    adapter_bytes: int = Field(
        2 << 30, ge=0, description="device memory for LoRAs; those used longest ago are given up first"
    )
    control: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="ControlNet that requests may name, loaded with the dit; all servers of a model need the same: "
        "NAME=FOLDER or NAME=HUB_ID[@REVISION][:FOLDER]; repeatable",
    )
    ip_adapter: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="IP-Adapter that requests may name; all servers of a model need the same: "
        "NAME=FILE, NAME=FOLDER or NAME=HUB_ID[@REVISION][:FILE]; repeatable",
    )
    image_encoder: str = Field(
        "", description="folder or HUB_ID[@REVISION][:FOLDER] of what reads the pictures of IP-Adapters"
    )
    may_load: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        max_length=MOST_MODELS - 1,
        description="further model that the gateway may have this server hold, beside or instead of --model: "
        "[NAME=]MODEL, with the emulated engine [NAME=]PROFILE; repeatable",
    )
    served_model_name: Name = Field("", max_length=256, description="name that clients use; the model's own when unset")

    name: Name = Field("", max_length=100, description="of this server, stable over restarts; host and pid when unset")
    pool: Name = Field("", max_length=100, description="that it was started for, as the gateway's pools call it")
    pin: bool = Field(False, description="keep the roles given: the gateway may not change them")
    together: Annotated[dict[Role, Annotated[int, Field(ge=1, le=MOST_TOGETHER)]], NoDecode] = Field(
        {Role.DIT: 8},
        description="jobs of fast requests that may compute at once: a number for every role, or ROLE=NUMBER, "
        "comma-separated, where roles not named compute one at a time (default: dit=8)",
    )
    prefetch: int = Field(
        1, ge=0, le=1, description="jobs whose inputs are fetched while another computes; 0: one after another"
    )
    data_bind: DataAddress = Field("tcp://127.0.0.1:*", min_length=1, description="where other processes fetch outputs")
    data_advertise: DataAddress = Field(
        "",
        description="how they reach that address, if not as it is; port * is filled in",
    )
    relay: Annotated[tuple[ControlAddress, ...], NoDecode] = Field(
        (),
        max_length=MAX_RELAYS,
        description="tcp://HOST:PORT of a relay, through which those fetch outputs who cannot connect to this server; "
        "repeatable or comma-separated",
    )
    relay_key: SecretStr = Field(
        SecretStr(""), description="the relays' key, if they have one; better set in the environment"
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="for Prometheus, of the host in --data-bind; 0: any; none if unset"
    )
    insecure: bool = Field(False, description="allow addresses beyond this machine without encryption")
    curve_public_key: str = Field(
        "",
        description="this server's CURVE public key, given as --curve-public-key=KEY",
    )
    curve_secret_key: SecretStr = Field(SecretStr(""), description="its secret key; better set in the environment")
    curve_gateway_key: str = Field("", description="the gateway's CURVE public key; with it, all traffic is encrypted")

    store_bytes: int = Field(1 << 30, ge=1 << 16, description="memory for outputs that wait to be fetched")
    connect_timeout: Seconds | None = Field(
        None, description="seconds to look for a gateway at start; for ever if unset"
    )
    ready_file: Path | None = Field(
        None, description="file that is there once a gateway has let this server in, for probes; removed at start"
    )
    drain_timeout: Seconds = Field(30.0, description="seconds after SIGTERM until the server leaves in any case")
    stuck_seconds: float = Field(
        120.0,
        ge=0,
        allow_inf_nan=False,
        description="seconds without a sign of life, and 20 times the prediction, after which the device counts as "
        "stuck and the process ends, to be started anew; 0: never",
    )

    @field_validator("gateway", "relay", mode="before")
    @classmethod
    def _each_once(cls, given: object) -> object:
        parts = [given] if isinstance(given, str) else given
        if not isinstance(parts, list | tuple):
            return given
        return tuple(dict.fromkeys(name.strip() for part in parts for name in str(part).split(",") if name.strip()))

    @field_validator("adapter", "control", "ip_adapter", "may_load", mode="before")
    @classmethod
    def _apart(cls, given: object) -> object:
        """An environment variable holds all of them, separated by commas."""
        return tuple(part.strip() for part in given.split(",") if part.strip()) if isinstance(given, str) else given

    @field_validator("role", "may_take", mode="before")
    @classmethod
    def _split(cls, given: object) -> object:
        parts = [given] if isinstance(given, str) else given
        if not isinstance(parts, list | tuple):
            return given
        names = [name.strip() for part in parts for name in str(part).split(",") if name.strip()]
        known = [role.value for role in Role]
        if strange := [name for name in names if name not in known]:
            raise ValueError(f"{strange[0]!r} is no role; {', '.join(known)} are")
        return tuple(role for role in Role if role in names)

    @field_validator("together", mode="before")
    @classmethod
    def _by_role(cls, given: object) -> object:
        if not isinstance(given, str):
            return given
        if re.fullmatch(r"\d+", given.strip()):
            return dict.fromkeys(Role, given.strip())
        pairs = [re.fullmatch(r"(\w+)=(\d+)", part.strip()) for part in given.split(",")]
        if not all(pair and pair[1] in set(Role) for pair in pairs):
            raise ValueError(f"{given!r} is neither a number nor a list such as dit=8,decoder=2")
        return {pair[1]: pair[2] for pair in pairs if pair}

    @model_validator(mode="after")
    def _may_take_its_roles(self) -> Self:
        if beyond := [role for role in self.role if role not in self.may_take]:
            raise ValueError(f"--role {beyond[0]} is not among those of --may-take {','.join(self.may_take)}")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.engine == "emulated":
            self._check_emulation()
        elif self.profile or self.time_scale != 1.0:
            raise ValueError("--profile and --time-scale belong to --engine emulated")
        if self.engine == "diffusers" and not self.model:
            raise ValueError("which model? add --model NAME_OR_PATH")
        self.check_further(self.engine, self.role)
        if self.pin and self.may_load:
            raise ValueError(
                "--pin keeps the roles of --model, so that --may-load would do nothing: leave one of them out"
            )
        if unnamed := [given for given in self.may_load if not given.rpartition("=")[2]]:
            raise ValueError(f"--may-load {unnamed[0]!r} names no model: write [NAME=]MODEL")
        names = [given.rpartition("=")[0] or given for given in self.may_load]
        if len(set(names)) < len(names):
            raise ValueError(f"--may-load names a model twice: {', '.join(self.may_load)}")
        given = (
            bool(self.curve_public_key),
            bool(self.curve_secret_key.get_secret_value()),
            bool(self.curve_gateway_key),
        )
        if any(given) and not all(given):
            raise ValueError("encryption needs all of --curve-public-key, --curve-secret-key and --curve-gateway-key")
        if self.curve_gateway_key and not valid_key(self.curve_gateway_key):
            raise ValueError("--curve-gateway-key is not 40 characters of Z85")
        return self

    def _check_emulation(self) -> None:
        if not self.profile:
            raise ValueError("the emulated engine needs a profile: add --profile FILE")
        for names, why in _COMPUTING.items():
            if any(getattr(self, name.removeprefix("--").replace("-", "_")) for name in names):
                verb = "belong" if len(names) > 1 else "belongs"
                raise ValueError(f"{' and '.join(names)} {verb} to --engine diffusers: an emulation has {why}")

    @model_validator(mode="after")
    def _goes_through_relays_encrypted(self) -> Self:
        beyond = [relay for relay in self.relay if not is_loopback(relay)]
        if beyond and not (self.curve_public_key or self.insecure):
            raise ValueError(
                f"--relay {beyond[0]} is on another machine, and without CURVE keys all that goes through it could be "
                "read on the way: configure keys, or allow plaintext with --insecure"
            )
        if self.relay_key.get_secret_value() and not self.relay:
            raise ValueError("--relay-key is the key of a relay, and none is named: add --relay tcp://HOST:PORT")
        return self

    def of_each_model(self) -> tuple[Settings, ...]:
        """``--model``, and without roles each ``--may-load``; LoRAs, ControlNets, formats, offloading, step caches and
        the revision are the first one's."""
        return (self, *(self._of_other(*given.rpartition("=")[::2]) for given in self.may_load))

    def _of_other(self, name: str, source: str) -> Settings:
        which = {"profile": source, "model": name} if self.engine == "emulated" else {"model": source}
        own: dict[str, Any] = {
            "role": (),
            "revision": None,
            "adapter": (),
            "adapters_folder": "",
            "control": (),
            "ip_adapter": (),
            "image_encoder": "",
            "served_model_name": name,
            "quantize": {},
            "offload": {},
            "step_cache": {},
        }
        return self.model_copy(update={**own, **OF_NONE, **which})

    def data_host(self) -> str:
        """Of ``data_bind``, as sockets take it."""
        return host_of(self.data_bind)

    def curve_keys(self) -> CurveKeys | None:
        """Raises ``InvalidSettings``."""
        if not self.curve_public_key:
            return None
        try:
            return CurveKeys(self.curve_public_key, self.curve_secret_key.get_secret_value())
        except ValueError as error:
            raise InvalidSettings(str(error)) from error


def read_settings(arguments: Sequence[str] | None = None, program: str = "python -m stage_server") -> Settings:
    """From the command line, and what it leaves open from the environment. Raises ``InvalidSettings``.

    Exits by itself on ``--help`` and on options that do not exist.
    """
    text = (
        "Serves one or more stages of a diffusion model to a DisagFusion gateway. "
        "'python -m stage_server profile --help' and '… memory --help' tell how to measure one, "
        "'python -m stage_server relay --help' how servers behind NAT are reached."
    )
    return read_as(Settings, program, text, arguments)


def find_profile(name: str, folders: Sequence[Path]) -> Path:
    """A file, or the name of one in ``folders`` without its suffix. Raises ``InvalidSettings``."""
    candidates = [Path(name), *(folder / f"{name}.toml" for folder in folders)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    bundled = sorted(path.stem for folder in folders for path in folder.glob("*.toml"))
    raise InvalidSettings(f"--profile: {name!r} is no file, nor one of the bundled {', '.join(bundled)}")
