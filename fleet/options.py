"""Settings of gateways and stage servers as a fleet's description gives them, judged by their own classes.

The only module of the fleet that knows gateway and stage server, and of them nothing but their settings.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from fleet.table import InvalidFleet, check_names
from gateway.settings import InvalidSettings
from gateway.settings import Settings as OfGateway
from stage_server.settings import Settings as OfStage

SET_BY_THE_FLEET = "set by the fleet"


class _GivenAlone(BaseSettings):
    """Mixed into settings: nothing is read from the environment."""

    @classmethod
    def settings_customise_sources(  # type: ignore[override] # of the sources, which have names, the others are dropped
        cls, _: type[BaseSettings], init_settings: PydanticBaseSettingsSource, **__: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


class _Gateway(_GivenAlone, OfGateway):
    pass


class _Stage(_GivenAlone, OfStage):
    pass


@dataclass(frozen=True, slots=True)
class Kind:
    settings: type[BaseSettings]
    elsewhere: Mapping[str, str]
    """Settings that are not given by name → where they are instead."""
    filled_in: Mapping[str, Any]
    """Stands for what is given elsewhere and must not be missing."""


GATEWAY = Kind(
    _Gateway,
    {
        **dict.fromkeys(("control_bind", "data_bind", "data_advertise", "cell", "peers", "pools"), SET_BY_THE_FLEET),
        "port": "the gateway's own 'port'",
        "allow_plaintext": "the fleet's own 'allow_plaintext'",
        "default_model": "'default = true' of the model",
        "model_aliases": "'aliases' of the model",
        "api_keys": "the table 'keys'",
        **{
            name: "the table 'keys'"
            for name, field in OfGateway.model_fields.items()
            if field.annotation in (SecretStr, SecretStr | None) and not name.startswith("curve_")
        },
        **dict.fromkeys(
            ("curve_public_key", "curve_secret_key", "curve_allowed_keys"),
            "'curve_gateways' and 'curve_servers' of the table 'keys'",
        ),
    },
    {},
)

STAGE = Kind(
    _Stage,
    {
        **dict.fromkeys(
            ("gateway", "name", "pool", "data_bind", "data_advertise", "served_model_name", "ready_file", "relay"),
            SET_BY_THE_FLEET,
        ),
        **dict.fromkeys(("model", "engine", "profile", "revision"), "a field of the model's own table"),
        **dict.fromkeys(("role", "may_take"), "'begin' and 'roles' of the pool"),
        "may_load": "'models' of the pool",
        "drain_timeout": "'drain_seconds' of the pool",
        "insecure": "the fleet's own 'allow_plaintext'",
        "relay_key": "the table 'keys'",
        **dict.fromkeys(
            ("curve_public_key", "curve_secret_key", "curve_gateway_key"),
            "'curve_gateways' and 'curve_servers' of the table 'keys'",
        ),
    },
    {"role": "encoder,dit,decoder", "gateway": "tcp://gateway:1"},
)


def check(kind: Kind, given: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    """``given`` itself. Raises ``ValueError`` for names and values that the process would refuse."""
    for name in given:
        if name in kind.elsewhere:
            raise ValueError(f"{name!r} is {kind.elsewhere[name]}")
    check_names(given, names(kind))
    engine = {} if kind is GATEWAY else _engine(given)
    try:
        kind.settings(**{**kind.filled_in, **engine, **given})
    except ValidationError as error:
        problem = error.errors()[0]
        at = ".".join(map(str, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        raise ValueError(f"{at}: {message}" if at else message) from None
    return given


def _engine(given: Mapping[str, JsonValue]) -> Mapping[str, str]:
    """Options of the emulated engine tell that the model has it."""
    return {"engine": "emulated", "profile": "any"} if "time_scale" in given else {"model": "any"}


def names(kind: Kind) -> list[str]:
    return [name for name in kind.settings.model_fields if name not in kind.elsewhere]


def schema_of(kind: Kind) -> dict[str, Any]:
    """For editors: the names, and what each is where that is simple."""
    properties = kind.settings.model_json_schema()["properties"]
    kept = ("type", "description", "enum", "minimum", "maximum")
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            name: {key: properties[name][key] for key in kept if key in properties[name]} for name in names(kind)
        },
    }


def as_flags(given: Mapping[str, JsonValue]) -> list[str]:
    """Of a stage server's command line."""
    flags: list[str] = []
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            flags += [part for each in value for part in (flag, str(each))]
        elif isinstance(value, dict):
            flags += [flag, ",".join(f"{key}={each}" for key, each in value.items())]
        else:
            flags += [flag, str(value)]
    return flags


def shutdown_seconds(given: Mapping[str, JsonValue]) -> float:
    """That a gateway with these settings takes to end, at most."""
    return _Gateway.model_validate(given).shutdown_seconds


def state_folder() -> Path:
    """Where this user's gateways keep their state. Raises ``InvalidFleet``."""
    try:
        return _Gateway.model_validate({"state_dir": os.environ.get("DISAGFUSION_STATE_DIR")}).state_folder()
    except InvalidSettings as error:
        raise InvalidFleet(str(error)) from None
