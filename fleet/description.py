"""A fleet, as ``fleet.toml`` describes it. See docs/fleet.md; ``python -m fleet schema`` prints the JSON schema."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, WithJsonSchema, field_validator, model_validator

from fleet.options import GATEWAY, STAGE, check, schema_of
from fleet.table import Table, check_names, nearest
from wire.bounded import MAX_RELAYS
from wire.types import REQUIRED, Role

Options = Mapping[str, JsonValue]
StageOptions = Annotated[Options, WithJsonSchema(schema_of(STAGE))]
GatewaySettings = Annotated[Options, WithJsonSchema(schema_of(GATEWAY))]
Port = Annotated[int, Field(ge=1, le=65535)]
Labels = Mapping[str, str | bool | int]

_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def _fit_for_names(given: str) -> str:
    """Names of processes, of Kubernetes objects and of Ray actors are made of it."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", given):
        raise ValueError(f"{given!r} is no name: write up to 40 of a-z, 0-9 and -, with a letter first")
    return given


def _bytes(given: str) -> str:
    if not re.fullmatch(rf"\d+({'|'.join(_UNITS)})", given):
        raise ValueError(f"{given!r} is no amount of memory; write 64GiB, 512MiB or a number of bytes")
    return given


Name = Annotated[str, AfterValidator(_fit_for_names)]
ModelName = Annotated[str, Field(min_length=1, max_length=256)]
Memory = Annotated[str, AfterValidator(_bytes)]


class Reference(Table):
    """Where a key is, never the key itself."""

    env: str | None = Field(default=None, min_length=1)
    """Variable of the shell that starts the fleet."""
    file: str | None = Field(default=None, min_length=1)
    """File that holds nothing else; relative to the description's folder."""

    @model_validator(mode="before")
    @classmethod
    def _is_no_key(cls, given: object) -> object:
        if isinstance(given, str):  # the text may be the key, so it is not repeated
            raise ValueError(  # noqa: TRY004 # pydantic tells of these alone
                'keys do not belong in this file: write { env = "VARIABLE" } or { file = "PATH" }'
            )
        return given

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise ValueError('write either { env = "VARIABLE" } or { file = "PATH" }')
        return self


class Keys(Table):
    """Secrets, by the names of the gateway's settings."""

    api_keys: Mapping[Annotated[str, Field(min_length=1)], Reference] = Field(default={})
    """Tenant → its API key."""
    admin_key: Reference | None = None
    metrics_key: Reference | None = None
    webhook_secret: Reference | None = None
    moderation_secret: Reference | None = None
    database_url: Reference | None = None
    rate_limit_url: Reference | None = None
    hub_token: Reference | None = None
    """Of the Hugging Face hub, for stage servers: HF_TOKEN."""
    relay_key: Reference | None = None
    """Of the fleet's relays, for them and for stage servers: whoever has it may be reached through them."""
    curve_gateways: Reference | None = None
    """CURVE key pair of the gateways, the public key before the secret one: with it all sockets are encrypted."""
    curve_servers: Reference | None = None
    """CURVE key pair that the stage servers share."""

    def single(self) -> Iterator[tuple[str, Reference]]:
        """Those that are given, but ``api_keys``."""
        for name in type(self).model_fields:
            if isinstance(reference := getattr(self, name), Reference):
                yield name, reference


class Model(Table):
    """The table's name is what clients call the model."""

    source: str = ""
    """Bundled name, folder or hub id."""
    engine: Literal["diffusers", "emulated"] = "diffusers"
    profile: str = ""
    """Instead of ``source``, for the emulated engine: bundled name or file of a cost profile."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    default: bool = False
    """For requests that name no model."""
    aliases: tuple[str, ...] = ()
    """Further names that clients may use."""
    options: StageOptions = Field(default={})
    """Of every stage server that begins with it: dtype, compile, adapter, …, by the names of ``--help``."""

    @model_validator(mode="after")
    def _has_what_its_engine_needs(self) -> Self:
        needed, useless = ("profile", "source") if self.engine == "emulated" else ("source", "profile")
        if not getattr(self, needed) or getattr(self, useless):
            raise ValueError(f"with the {self.engine} engine a model has a {needed}, and no {useless}")
        return self

    @field_validator("options")
    @classmethod
    def _are_options(cls, given: Options) -> Options:
        return check(STAGE, given)


class Resources(Table):
    """Of one server. Ray and Kubernetes reserve them; on one machine GPUs are handed out, and nothing else counts."""

    num_gpus: float = Field(default=0, ge=0, allow_inf_nan=False)
    """A fraction lets several servers share a GPU (not on Kubernetes)."""
    cpus: float = Field(default=1, gt=0, allow_inf_nan=False)
    memory: Memory | None = None
    """Of the host: 64GiB, 512MiB, or bytes."""
    custom: Mapping[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default={})
    """Ray's custom resources; extended resources on Kubernetes."""

    @field_validator("num_gpus")
    @classmethod
    def _is_a_share_or_whole(cls, given: float) -> float:
        if given > 1 and given != int(given):
            raise ValueError(f"{given:g} GPUs cannot be had: write a whole number, or a fraction below 1")
        return given

    @property
    def memory_bytes(self) -> int | None:
        if self.memory is None:
            return None
        number, unit = re.fullmatch(r"(\d+)(\w*)", self.memory).groups()  # type: ignore[union-attr] # ``_bytes``
        return int(number) * _UNITS[unit]


class Pool(Table):
    """Stage servers that are alike."""

    models: tuple[str, ...] = Field(min_length=1, max_length=4)
    """Its servers begin with the first; the gateway may have them hold the others too, or instead."""
    gateways: tuple[str, ...] = Field(default=(), max_length=32)
    """That its servers belong to, one at a time; all of the fleet when unset."""
    roles: tuple[Role, ...] = Field(default=REQUIRED, min_length=1)
    """Roles that its servers may have: the gateway moves them among these, as the load asks for it."""
    begin: tuple[tuple[Role, ...], ...] = ()
    """Roles to begin with, for one server after the other in turn; all of ``roles`` for each when unset."""
    min: int = Field(default=1, ge=0, le=1000)
    """Servers that run at least."""
    max: int | None = Field(default=None, ge=1, le=1000)
    """Servers that run at most; ``min`` when unset."""
    scaled_by: Literal["prediction", "hand"] = "prediction"
    """Who says how many there are between ``min`` and ``max``: the gateway's prediction, where there is an
    ``admin_key`` to ask for it, or ``scale``."""
    device_class: str = ""
    """As cost profiles name it, NVIDIA H100: ``status`` shows it."""
    resources: Resources = Field(default=Resources())
    placement: Literal["pack", "spread"] = "pack"
    """Neighbours on one machine, where tensors travel fastest; or on many, so that one machine takes few along."""
    node_labels: Mapping[str, str] = Field(default={})
    """Labels that a machine must have (Ray, Kubernetes)."""
    labels: Labels = Field(default={})
    """The operator's own, such as zone or spot: ``status`` shows them, Kubernetes puts them on pods."""
    drain_seconds: float = Field(default=30.0, gt=0, le=3600)
    """That a server has to finish its work when it is to end."""
    options: StageOptions = Field(default={})
    """Of the stage server, by the names of ``--help``; before those of the model."""

    @field_validator("options")
    @classmethod
    def _are_options(cls, given: Options) -> Options:
        return check(STAGE, given)

    @field_validator("begin")
    @classmethod
    def _begins_with_something(cls, given: tuple[tuple[Role, ...], ...]) -> tuple[tuple[Role, ...], ...]:
        if not all(given):
            raise ValueError("a server cannot begin without a role")
        return given

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.most < max(self.min, 1):
            raise ValueError(f"max ({self.most}) must be at least 1, and not below min ({self.min})")
        if strange := [role for roles in self.begin for role in roles if role not in self.roles]:
            raise ValueError(f"begin: {strange[0]} is not among roles ({', '.join(self.roles)})")
        return self

    @property
    def most(self) -> int:
        return self.min if self.max is None else self.max

    def begins(self, index: int) -> tuple[Role, ...]:
        """Roles of server ``index``, counted from 1."""
        return self.begin[(index - 1) % len(self.begin)] if self.begin else self.roles


class Gateway(Table):
    port: Port = 8000
    """Of the HTTP API."""
    control_port: Port = 5600
    """That stage servers connect to."""
    data_port: Port = 5601
    """Where they fetch uploaded pictures."""
    settings: GatewaySettings = Field(default={})
    """Any of the gateway's (docs/operating.md), but secrets, which are ``keys``, and what the fleet sets itself."""

    @field_validator("settings")
    @classmethod
    def _are_settings(cls, given: Options) -> Options:
        return check(GATEWAY, given)


class Relay(Table):
    """Through which those fetch from stage servers who cannot connect to them."""

    port: Port = 5700
    """That everybody connects to."""
    max_streams: int = Field(default=512, ge=1, le=65536)
    """Connections of one process to another that may lead through it at once."""
    drain_seconds: float = Field(default=10.0, gt=0, le=3600)
    """That transfers under way have when it is to end."""


class Fleet(Table):
    name: Name = "disagfusion"
    allow_plaintext: bool = False
    """The network between the machines is private: sockets beyond loopback may be unencrypted."""
    keys: Keys = Field(default=Keys())
    models: Mapping[ModelName, Model] = Field(min_length=1)
    pools: Mapping[Name, Pool] = Field(min_length=1)
    gateways: Mapping[Name, Gateway] = Field(default={"gateway": Gateway()}, min_length=1)
    relays: Mapping[Name, Relay] = Field(default={}, max_length=MAX_RELAYS)
    """Every stage server joins all of them."""

    @model_validator(mode="after")
    def _names_what_exists(self) -> Self:
        for name, pool in self.pools.items():
            for model in pool.models:
                if model not in self.models:
                    raise ValueError(f"pools.{name}.models: there is no model {model!r}{nearest(model, self.models)}")
            try:
                check_names(pool.gateways, self.gateways)
            except ValueError as error:
                raise ValueError(f"pools.{name}.gateways: {error}") from None
        for table, names in (("gateways", self.gateways), ("relays", self.relays)):
            for name in names:
                if name in self.pools or name.rpartition("-")[0] in self.pools:
                    raise ValueError(f"{table}.{name}: processes of a pool have such a name: write another")
        if both := self.gateways.keys() & self.relays.keys():
            raise ValueError(f"relays.{min(both)}: a gateway has this name: write another")
        return self

    @model_validator(mode="after")
    def _is_encrypted_on_both_sides(self) -> Self:
        if (self.keys.curve_gateways is None) != (self.keys.curve_servers is None):
            raise ValueError("keys: encryption needs curve_gateways and curve_servers, or neither")
        return self

    @model_validator(mode="after")
    def _relays_are_guarded(self) -> Self:
        if self.keys.relay_key is not None and not self.relays:
            raise ValueError("keys.relay_key: there are no relays; write [relays.NAME], or leave it out")
        return self

    @model_validator(mode="after")
    def _has_one_default(self) -> Self:
        if len(defaults := [name for name, model in self.models.items() if model.default]) > 1:
            raise ValueError(f"models: only one can be the default, not {' and '.join(map(repr, defaults))}")
        return self

    @model_validator(mode="after")
    def _further_models_are_plain(self) -> Self:
        for name, pool in self.pools.items():
            first, *others = pool.models
            engine = self.models[first].engine
            for other in (self.models[other] for other in others):
                if other.revision or other.options or other.engine != engine:
                    raise ValueError(
                        f"pools.{name}.models: of those after the first, servers are told the "
                        "source or profile alone, so these can have no revision, no options and no other engine"
                    )
        return self

    @model_validator(mode="after")
    def _every_role_has_a_pool(self) -> Self:
        for gateway in self.gateways:
            for model in self.models:
                pools = [pool for pool in self.pools_of(gateway) if model in pool.models]
                lacking = [role for role in REQUIRED if not any(role in pool.roles for pool in pools)]
                if pools and lacking:
                    raise ValueError(
                        f"models.{model}: no pool may serve its {lacking[0]}; requests need encoder, dit and decoder"
                    )
        return self

    @property
    def is_encrypted(self) -> bool:
        return self.keys.curve_gateways is not None

    @property
    def predicted(self) -> list[str]:
        """Pools of which gateways are to say how many servers they need."""
        return [name for name, pool in self.pools.items() if pool.scaled_by == "prediction" and pool.most > pool.min]

    def gateways_of(self, pool: Pool) -> tuple[str, ...]:
        return pool.gateways or tuple(self.gateways)

    def pools_of(self, gateway: str) -> list[Pool]:
        return [pool for pool in self.pools.values() if gateway in self.gateways_of(pool)]

    def peers_of(self, gateway: str) -> list[str]:
        """Others that have servers in common with it, and so take over for each other."""
        found = {each for pool in self.pools_of(gateway) for each in self.gateways_of(pool)}
        return [each for each in self.gateways if each in found and each != gateway]


def stage_options(fleet: Fleet, pool: Pool) -> dict[str, JsonValue]:
    """The pool's before the model's."""
    return {**fleet.models[pool.models[0]].options, **pool.options}
