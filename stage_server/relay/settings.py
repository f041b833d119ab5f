"""Settings of a relay, from the command line or ``DISAGFUSION_STAGE_*`` variables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings

from stage_server.command_line import read_as
from stage_server.relay.relay import MAX_STREAMS
from stage_server.setting_values import DataAddress
from stage_server.settings import EngineSettings, Seconds
from wire.security import is_loopback


class RelaySettings(BaseSettings):
    """Of ``python -m stage_server relay``."""

    model_config = EngineSettings.model_config

    bind: DataAddress = Field("tcp://127.0.0.1:5700", min_length=1, description="where everybody connects to it")
    relay_key: SecretStr = Field(
        SecretStr(""), description="that stage servers must have as well; better set in the environment"
    )
    insecure: bool = Field(False, description="let stage servers of other machines join without a key")
    max_streams: int = Field(
        MAX_STREAMS,
        ge=1,
        le=65536,
        description="connections of one process to another that may lead through it at once",
    )
    drain_timeout: Seconds = Field(
        10.0, description="seconds after SIGTERM in which transfers under way may end; nothing new begins"
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="for Prometheus, of the host in --bind; 0: any; none if unset"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what goes to stderr")
    log_format: Literal["text", "json"] = Field("text", description="of the log; json: an object on each line")

    @model_validator(mode="after")
    def _is_not_open(self) -> Self:
        if not (self.relay_key.get_secret_value() or self.insecure or is_loopback(self.bind)):
            raise ValueError(
                f"--bind {self.bind} can be reached from other machines and there is no --relay-key: "
                "set one, here and at the stage servers, or allow everybody to join with --insecure"
            )
        return self


def read_relay_settings(
    arguments: Sequence[str] | None = None, program: str = "python -m stage_server"
) -> RelaySettings:
    """Raises ``InvalidSettings``; exits by itself on ``--help`` and on options that do not exist."""
    text = (
        "Carries data between stage servers and gateways that cannot connect to each other: "
        "all of them connect to it. docs/how-to/behind-nat.md tells how to use one."
    )
    return read_as(RelaySettings, f"{program} relay", text, arguments)
