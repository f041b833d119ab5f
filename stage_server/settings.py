"""Every setting of a stage server, from the command line or ``DISAGFUSION_STAGE_*`` variables, read once at start.

The only module of the stage server that looks at the environment, apart from the libraries' own variables (``HF_TOKEN``
for private models on the hub, ``OTEL_*``, ``CUDA_VISIBLE_DEVICES``).
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from wire.environment import complaints
from wire.security import CurveKeys, valid_key
from wire.types import Role

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _control_address(given: str) -> str:
    if not re.fullmatch(r"tcp://.+:\d+", given):
        raise ValueError(f"{given!r} is no address; write tcp://HOST:PORT")
    return given


def _data_address(given: str) -> str:
    if given and not re.fullmatch(r"tcp://.+:(\d+|\*)", given):
        raise ValueError(f"{given!r} is no address; write tcp://HOST:PORT, or * for any port")
    return given


def _one_line(given: str) -> str:
    if not given.isprintable():
        raise ValueError(f"{given!r} is not one line of printable text")
    return given


ControlAddress = Annotated[str, AfterValidator(_control_address)]
DataAddress = Annotated[str, AfterValidator(_data_address)]
Name = Annotated[str, AfterValidator(_one_line)]


class InvalidSettings(Exception):
    """A setting cannot be used; the text is for the operator and names it."""


class EngineSettings(BaseSettings):
    """What computes. A field's description is its line in ``--help``."""

    model_config = SettingsConfigDict(env_prefix="DISAGFUSION_STAGE_", frozen=True, hide_input_in_errors=True)

    model: str = Field("", description="bundled name, folder or hub id of the model; optional with a profile")
    device: str = Field("auto", description="cuda:0, cpu, …; auto takes the first GPU if there is one")
    dtype: str = Field("auto", description="bfloat16, float16 or float32; auto: bfloat16 on a GPU, else float32")
    revision: str | None = Field(None, description="branch, tag or commit of a model on the hub")
    compile: bool = Field(False, description="compile the transformer with torch.compile")
    attention_backend: str | None = Field(None, description="diffusers' name of an attention backend")
    threads: int | None = Field(None, ge=1, description="processor threads that torch may use")
    weight_cache_bytes: int = Field(
        0, ge=0, description="host memory for weights that role changes unload, so that they come back quickly"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what goes to stderr")


class Settings(EngineSettings):
    """Of a server."""

    role: Annotated[tuple[Role, ...], NoDecode] = Field(
        min_length=1, description="encoder, dit or decoder: what to serve at start; repeatable or comma-separated"
    )
    gateway: ControlAddress = Field(description="control address of the gateway, tcp://HOST:PORT")

    engine: Literal["diffusers", "emulated"] = Field("diffusers", description="diffusers computes, emulated waits")
    profile: str = Field("", description="with the emulated engine: file or bundled name of a cost profile")
    time_scale: float = Field(1.0, gt=0, description="with the emulated engine: 0.1 makes all ten times faster")
    served_model_name: Name = Field("", max_length=256, description="name that clients use; the model's own when unset")

    name: Name = Field("", max_length=100, description="of this server, stable over restarts; host and pid when unset")
    pin: bool = Field(False, description="keep the roles given: the gateway may not change them")
    data_bind: DataAddress = Field("tcp://127.0.0.1:*", min_length=1, description="where other processes fetch outputs")
    data_advertise: DataAddress = Field(
        "",
        description="how they reach that address, if not as it is; port * is filled in",
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
    drain_timeout: Seconds = Field(30.0, description="seconds after SIGTERM until the server leaves in any case")

    @field_validator("role", mode="before")
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

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.engine == "emulated" and not self.profile:
            raise ValueError("the emulated engine needs a profile: add --profile FILE")
        if self.engine == "diffusers" and (self.profile or self.time_scale != 1.0):
            raise ValueError("--profile and --time-scale belong to --engine emulated")
        if self.engine == "emulated" and self.weight_cache_bytes:
            raise ValueError("--weight-cache-bytes belongs to --engine diffusers: an emulation has no weights")
        if self.engine == "diffusers" and not self.model:
            raise ValueError("which model? add --model NAME_OR_PATH")
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

    def curve_keys(self) -> CurveKeys | None:
        """Raises ``InvalidSettings``."""
        if not self.curve_public_key:
            return None
        try:
            return CurveKeys(self.curve_public_key, self.curve_secret_key.get_secret_value())
        except ValueError as error:
            raise InvalidSettings(str(error)) from error


class ProfileSettings(EngineSettings):
    """Of ``python -m stage_server profile``."""

    model: str = Field(min_length=1, description="bundled name, folder or hub id of the model")
    sizes: Annotated[tuple[tuple[int, int], ...], NoDecode] = Field(
        (), description="pictures to time, WIDTHxHEIGHT,…; unset: from the smallest to the largest that is served"
    )
    repeats: int = Field(5, ge=1, le=100, description="measurements of each, of which the median counts")
    output: Path | None = Field(None, description="file to write; to the terminal if unset")

    @field_validator("sizes", mode="before")
    @classmethod
    def _split(cls, given: object) -> object:
        if not isinstance(given, str):
            return given
        pairs = [re.fullmatch(r"(\d+)x(\d+)", part.strip()) for part in given.split(",")]
        if len(pairs) < 2 or not all(pairs):
            raise ValueError(f"{given!r} is no list of at least two sizes such as 256x256,1024x768")
        return tuple((int(pair[1]), int(pair[2])) for pair in pairs if pair)


AnySettings = TypeVar("AnySettings", bound=EngineSettings)


def read_settings(arguments: Sequence[str] | None = None) -> Settings:
    """From the command line, and what it leaves open from the environment. Raises ``InvalidSettings``.

    Exits by itself on ``--help`` and on options that do not exist.
    """
    text = (
        "Serves one or more stages of a diffusion model to a DisagFusion gateway. "
        "'python -m stage_server profile --help' tells how to measure one."
    )
    return _read(Settings, "python -m stage_server", text, arguments)


def read_profile_settings(arguments: Sequence[str] | None = None) -> ProfileSettings:
    """The same for the subcommand ``profile``."""
    text = "Times a model on this device and writes a cost profile, which docs/profiles.md describes."
    return _read(ProfileSettings, "python -m stage_server profile", text, arguments)


def _read(kind: type[AnySettings], program: str, text: str, arguments: Sequence[str] | None) -> AnySettings:
    parsed = vars(_parser(kind, program, text).parse_args(arguments))
    try:
        return kind(**{name: value for name, value in parsed.items() if value is not None})
    except ValidationError as error:
        raise InvalidSettings("; ".join(_complaint(problem) for problem in error.errors())) from None


def ignored_variables() -> Iterator[str]:
    """A warning about each variable that was probably meant as an option."""
    return complaints(os.environ, "DISAGFUSION_STAGE_", {**Settings.model_fields, **ProfileSettings.model_fields})


def find_profile(name: str, folders: Sequence[Path]) -> Path:
    """A file, or the name of one in ``folders`` without its suffix. Raises ``InvalidSettings``."""
    candidates = [Path(name), *(folder / f"{name}.toml" for folder in folders)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    bundled = sorted(path.stem for folder in folders for path in folder.glob("*.toml"))
    raise InvalidSettings(f"--profile: {name!r} is no file, nor one of the bundled {', '.join(bundled)}")


def _parser(kind: type[EngineSettings], program: str, summary: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description=summary,
        epilog="Every option can also be set as DISAGFUSION_STAGE_<OPTION>; the command line wins.",
    )
    for name, field in kind.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        text = f"{field.description}{_default(field.default)}"
        if field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        elif name == "role":
            parser.add_argument(flag, action="append", metavar="ROLE", help=text)
        else:
            parser.add_argument(flag, metavar=name.rpartition("_")[2].upper(), help=text)
    return parser


def _default(value: object) -> str:
    shown = isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""
    return f" (default: {value})".replace("%", "%%") if shown else ""


def _complaint(problem: Any) -> str:
    location = ".".join(str(part) for part in problem["loc"][:1])
    message = "is missing" if problem["type"] == "missing" else problem["msg"].removeprefix("Value error, ")
    return f"--{location.replace('_', '-')}: {message}" if location else message
