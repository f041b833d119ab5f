"""Every setting of the gateway, read once at start from ``DISAGFUSION_*`` variables and a file, and passed down.

The only module of the gateway that looks at the environment, but for ``OTEL_*`` (``wire.telemetry``). A bad value stops
start-up with a message that names it.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from gateway.accounts.caller import Limits
from gateway.service.interfaces import BACKGROUND
from wire.security import CurveKeys, valid_key
from wire.types import REQUIRED, Role

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


def _tcp_endpoint(given: str) -> str:
    if not re.fullmatch(r"tcp://.+:(\d+|\*)", given):
        raise ValueError(f"{given!r} is no address; write tcp://HOST:PORT, or * for any port")
    return given


def _http_url(given: str) -> str:
    if not re.match(r"https?://[^/\s]+", given):
        raise ValueError(f"{given!r} is no address; write http://HOST or https://HOST")
    return given


def _network(given: str) -> str:
    try:
        return str(ipaddress.ip_network(given))
    except ValueError as error:
        raise ValueError(f"{error}; write an address or a network, as in 10.0.0.7 or 10.0.0.0/24") from None


def _peer_endpoint(given: str) -> str:
    if not re.fullmatch(r"tcp://.+:\d+", given):
        raise ValueError(f"{given!r} is no address; write tcp://HOST:PORT, the control address of a gateway")
    return given


PeerEndpoint = Annotated[str, AfterValidator(_peer_endpoint)]
TcpEndpoint = Annotated[str, AfterValidator(_tcp_endpoint)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]


class InvalidSettings(Exception):
    """A setting cannot be used; the text is for the operator and names the variable."""


class PoolTable(BaseModel):
    """Stage servers of one model that are started and stopped as the load asks for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1)
    min: int = Field(1, ge=0)
    max: int = Field(ge=1)
    roles: frozenset[Role] = Field(frozenset(REQUIRED), min_length=1)
    """That its servers may have."""
    device_class: str = ""
    """As cost profiles name it: tells how fast its servers are before one was seen."""
    cold_start_seconds: Seconds = 120.0
    """Assumed until some were measured."""
    price: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Of a server, relative to other pools' of the model."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) must not be below min ({self.min})")
        return self


class Settings(BaseSettings):
    """Lists and mappings are JSON, for example ``DISAGFUSION_MODEL_ALIASES='{"gpt-image-1": "tiny-shapes"}'``."""

    model_config = SettingsConfigDict(env_prefix="DISAGFUSION_", frozen=True, extra="forbid")

    # HTTP
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    """0 lets the system choose."""
    public_url: HttpUrl | None = None
    """What clients call this server, for urls in answers; the request's own base url when unset."""
    trusted_proxies: tuple[Annotated[str, AfterValidator(_network)], ...] = ()
    """Addresses and networks of reverse proxies, whose ``Forwarded`` or ``X-Forwarded-…`` headers count."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose web pages may call the API; ``["*"]`` for any, nothing for none."""
    api_keys: dict[str, SecretStr] = {}
    """Name of the tenant → key, beside those that ``python -m gateway keys`` makes. No key at all: open to all."""
    allow_anonymous: bool = False
    """Must be set to listen beyond loopback without any key."""
    admin_key: SecretStr | None = Field(None, min_length=16)
    """Opens ``/admin``, which does not exist without it. None of ``api_keys``."""
    page: bool = True
    """Serve the web page at ``/``."""
    metrics: bool = True
    """Serve ``/metrics`` for Prometheus."""
    metrics_port: int | None = Field(None, ge=0, le=65535)
    """Of ``host``, where ``/metrics`` is then served instead of beside the API; 0 lets the system choose."""
    metrics_key: SecretStr | None = Field(None, min_length=16)
    """To be shown by whoever reads ``/metrics``, as ``Authorization: Bearer``; open to all without it."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    log_prompts: bool = False
    """Put prompts into logs and spans."""
    expose_stage_timings: bool = True
    """Send ``server-timing`` with what each stage took and where it ran."""

    embed_metadata: Literal["none", "parameters", "parameters+prompt"] = "none"
    """Write model, seed, steps, guidance and size into finished pictures, and the prompt if it is named."""

    # Limits of one request
    max_body_bytes: Count = 1 << 20
    body_timeout_seconds: Seconds = 60.0
    """For a JSON body to arrive."""
    upload_timeout_seconds: Seconds = 600.0
    """For a form, or JSON with pictures, to arrive."""
    max_n: int = Field(10, ge=1, le=10)
    max_pixels: Count = 3840 * 2160
    """For models that name no limit of their own, and an upper bound for those that do."""
    max_upscaled_pixels: Count = 8192 * 8192
    """Of a picture that an upscaler has made larger."""
    max_aspect_ratio: float = Field(3.0, ge=1, allow_inf_nan=False)
    """Longer edge over shorter edge."""
    request_timeout_seconds: Seconds = 600.0
    """Deadline of a request that names none, and the longest that it may name."""
    deadline_grace_seconds: Seconds = 5.0
    """How long past its deadline a request may take to end by itself before the API ends it."""

    # Limits of an API key that has none of its own, or without keys of a client's address; unset: none
    default_requests_per_minute: Count | None = None
    default_images_per_minute: Count | None = None
    default_concurrent_requests: Count | None = None
    default_device_seconds_per_month: Seconds | None = None
    """In calendar months (UTC). Without keys all callers share it."""
    rate_limit_url: SecretStr | None = None
    """``redis://…``, for several gateways that limit together; each counts for itself when unset."""
    usage_max_age_days: Seconds = 400.0
    """How long records of use are kept."""

    # Pictures that clients send
    max_edit_body_bytes: Count = 850 << 20
    """Of an edit: sixteen pictures and a mask."""
    max_image_bytes: Count = 50 << 20
    max_mask_bytes: Count = 4 << 20
    max_image_pixels: int = Field(64_000_000, ge=1, le=150_000_000)
    """Decoding takes up to 18 bytes of memory for each, for two pictures at a time."""
    fetch_image_urls: bool = True
    """Fetch pictures that are named by a link."""
    image_url_timeout_seconds: Seconds = 20.0
    """For one such picture to arrive."""
    image_url_ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = (80, 443)
    allow_private_image_urls: bool = False
    """Let links lead to private, loopback and link-local addresses: whoever may send requests then reaches what the
    gateway reaches."""

    # Moderation; docs/operating.md
    moderation_url: HttpUrl | None = None
    """Is asked about prompts and pictures; nobody is when unset."""
    moderation_secret: SecretStr | None = None
    """Sent to it as ``Authorization: Bearer``."""
    moderation_stages: frozenset[Literal["before", "after"]] = Field(frozenset(("before", "after")), min_length=1)
    """Before: prompt and pictures that were sent. After: every finished picture."""
    moderation_timeout_seconds: Seconds = 10.0
    moderation_on_failure: Literal["refuse", "allow"] = "refuse"
    """What happens to a request when there is no verdict."""
    moderation_partial_images: Literal["withhold", "check"] = "withhold"
    """Of streams, where finished pictures are checked."""

    # Models
    default_model: str | None = None
    """For requests that name none; the first model served when unset."""
    model_aliases: dict[str, str] = {}
    """Name that clients use → served model."""

    # Files and pictures behind urls
    state_dir: Path | None = None
    """Where everything lies that outlives the process; see ``state_folder``."""
    database_url: SecretStr | None = None
    """``postgresql://…``; an SQLite file in ``state_dir`` when unset. Several gateways may share one."""
    file_store: str | None = None
    """Url of the store for files and pictures (``s3://bucket/prefix``); a folder of ``state_dir`` when unset."""
    storage_max_bytes: int = Field(10 << 30, ge=64 << 20)
    """Of files and pictures together."""
    storage_tenant_share: float = Field(0.5, gt=0, le=1)
    """Of ``storage_max_bytes``, for what one tenant's files and jobs take."""
    file_max_bytes: Count = 512 << 20
    """Of one uploaded file."""
    files_max_age_seconds: Seconds | None = None
    """For files whose upload names no expiry; kept until deleted when unset, but batch files for 30 days."""
    results_max_bytes: int = Field(1 << 30, ge=64 << 20)
    """Of pictures behind urls."""
    results_max_age_seconds: Seconds = 3600.0

    # Answers kept for their Idempotency-Key
    idempotency_max_age_seconds: Seconds = 86_400.0
    idempotency_max_bytes: int = Field(1 << 30, ge=64 << 20)
    """Of all of them; beyond that, the oldest are forgotten before their time."""

    # Jobs
    job_timeout_seconds: Seconds = 86_400.0
    """Deadline of a job whose request names none, and the longest that it may name."""
    jobs_max_age_seconds: Seconds = 86_400.0
    """How long a job that has ended is kept, with its prompt and its pictures."""
    jobs_at_once: Count = 64
    """That the scheduler knows at a time; others wait in the database."""
    batch_lines_at_once: Count = 16
    """Of batches, likewise, behind everything else. As many as keep every server busy."""
    batches_max_age_seconds: Seconds = 30 * 86_400.0
    """How long a batch that has ended can be asked for; its files expire by themselves."""
    webhook_secret: SecretStr | None = None
    """Signs calls of webhooks: ``whsec_`` and base64 of 24 to 64 random bytes. None are called without it."""
    webhook_ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = (80, 443)
    allow_private_webhooks: bool = False
    """Let webhooks lead to private, loopback and link-local addresses."""

    # Pipeline
    embedding_cache_bytes: int = Field(1 << 30, ge=0)
    """Of encoders' outputs kept in the stage servers' stores, so that a repeated prompt is not encoded again; at most a
    quarter of each store. 0 keeps none."""
    share_embeddings: bool = False
    """Let one key's requests use what was encoded for another's: from a request's time it can be told whether anybody
    has asked for the same before."""
    cell: str = Field("", max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")
    """Name of this gateway among its ``peers``; unset: this machine's name and the port of ``control_bind``."""
    peers: tuple[PeerEndpoint, ...] = ()
    """Control addresses of the other gateways (its own may be among them), which take over for each other."""
    shutdown_seconds: Seconds = 120.0
    """From SIGTERM on, for requests under way to finish and servers to go to the ``peers``; with ``--local`` 5."""
    control_bind: TcpEndpoint = "tcp://127.0.0.1:5600"
    data_bind: TcpEndpoint = "tcp://127.0.0.1:*"
    data_advertise: TcpEndpoint | None = None
    """Where stage servers reach ``data_bind``; that address itself when unset."""
    allow_plaintext: bool = False
    """Must be set to bind ``control_bind`` or ``data_bind`` beyond loopback without CURVE keys."""
    curve_public_key: str = ""
    """The gateway's CURVE key pair, as Z85; with it every connection of both sockets is encrypted."""
    curve_secret_key: SecretStr = SecretStr("")
    curve_allowed_keys: dict[str, str] = {}
    """Name of a stage server → its public key. With CURVE keys nobody else may connect. A name that ends with * is that
    of all which begin so and have no key of their own: they share one."""
    heartbeat_seconds: Seconds = 2.0
    liveness_seconds: Seconds = 10.0
    """Silence after which a stage server counts as lost."""
    max_stage_servers: Count = 2048
    """More are refused. Twice a cell of 1,000: of two cells, either has room for the servers of the other."""
    uploads_max_bytes: Count = 1 << 30
    """Of all requests under way: bodies as they arrive, and pictures until their requests are over."""

    # Scheduling; docs/scheduling.md explains the parts
    order: Literal["shortest", "first-come"] = "shortest"
    """Which waiting job of a tenant goes first: that with the least predicted work left, with aging; or the oldest."""
    elastic_roles: bool = True
    """Give servers other roles as the load shifts, but those that are pinned."""
    exclusive_roles: bool = False
    """One role per server at most."""
    role_interval_seconds: Seconds = 1.0
    """Between two looks at the roles."""
    role_dwell_seconds: Seconds = 10.0
    """A server keeps new roles at least that long."""
    preemption: bool = True
    """Let a much shorter job interrupt a long one between two denoising steps."""
    share_guidance: bool = True
    """Let a server that has nothing to do compute half of each guided denoising step of another's, until it has."""
    max_batch: int = Field(8, ge=1, le=128)
    """Most jobs of equal shape that compute together on one device, where it allows as many and where it pays. Only
    those of requests that may be fast (``batching``); 1 turns it off."""
    tenant_shares: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    """Tenant → weight of its share of device time, where it is not 1."""
    pools: dict[str, PoolTable] = {}
    """Servers that a launcher starts and stops as ``/admin/scaling`` says, by the pool's name; docs/autoscaling.md."""
    scaling_dwell_seconds: float = Field(60.0, ge=0, allow_inf_nan=False)
    """A pool keeps what it has for at least so long after it was needed."""
    scaling_idle_seconds: Seconds = 300.0
    """Without a request, after which pools go back to their least."""
    scaling_wait_seconds: Seconds = 60.0
    """That requests may have to wait before more servers are asked for, whatever their deadlines allow."""
    profiles: tuple[Path, ...] = ()
    """Cost profiles beside the bundled ones, as ``python -m stage_server profile`` writes them."""
    max_waiting_requests: Count = 1000
    """Admitted and not finished; more are turned away with 503."""
    max_attempts: Count = 3
    """Of one stage job, for errors that a server reports."""

    def default_limits(self) -> Limits:
        return Limits(
            self.default_requests_per_minute,
            self.default_images_per_minute,
            self.default_concurrent_requests,
            self.default_device_seconds_per_month,
        )

    def state_folder(self) -> Path:
        """``state_dir``, or the user's own by the XDG rules. Raises ``InvalidSettings`` where there is no home."""
        if self.state_dir is not None:
            return self.state_dir.absolute()
        base = Path(os.environ.get("XDG_STATE_HOME", ""))
        if base.is_absolute():
            return base / "disagfusion"
        try:
            return Path.home() / ".local" / "state" / "disagfusion"
        except RuntimeError:
            raise InvalidSettings("DISAGFUSION_STATE_DIR: set it, as this user has no home directory") from None

    @field_validator("database_url")
    @classmethod
    def _is_postgresql(cls, given: SecretStr | None) -> SecretStr | None:
        if given is not None and not re.match(r"postgres(ql)?://", given.get_secret_value()):
            # The url itself may hold a password, and this text ends up in logs.
            raise ValueError("write postgresql://USER:PASSWORD@HOST:PORT/NAME, or leave it out for an SQLite file")
        return given

    @field_validator("rate_limit_url")
    @classmethod
    def _is_redis(cls, given: SecretStr | None) -> SecretStr | None:
        if given is not None and not re.match(r"(rediss?|unix)://", given.get_secret_value()):
            # The url itself may hold a password, and this text ends up in logs.
            raise ValueError("write redis://USER:PASSWORD@HOST:PORT/NUMBER (rediss:// with TLS), or unix://PATH")
        return given

    @field_validator("webhook_secret")
    @classmethod
    def _is_webhook_secret(cls, given: SecretStr | None) -> SecretStr | None:
        if given is not None and not _is_whsec(given.get_secret_value()):
            raise ValueError("write whsec_ and the base64 of 24 to 64 random bytes")
        return given

    @field_validator("api_keys")
    @classmethod
    def _keys_are_usable(cls, keys: dict[str, SecretStr]) -> dict[str, SecretStr]:
        if not all(name and key.get_secret_value().strip() for name, key in keys.items()):
            raise ValueError("every entry needs a name and a key that is not blank")
        if BACKGROUND in keys:
            raise ValueError(f"batches run as '{BACKGROUND}': give the tenant another name")
        return keys

    @model_validator(mode="after")
    def _admin_key_is_its_own(self) -> Self:
        if self.admin_key is not None and self.admin_key in self.api_keys.values():
            raise ValueError("admin_key must not be one of api_keys: their holders would be operators")
        return self

    @model_validator(mode="after")
    def _moderation_has_an_address(self) -> Self:
        if self.moderation_url is None and self.moderation_secret is not None:
            raise ValueError("moderation_secret needs moderation_url")
        if self.moderation_url is not None and "@" in self.moderation_url.partition("//")[2].partition("/")[0]:
            raise ValueError("moderation_url must hold no user name or password: use moderation_secret")
        return self

    @field_validator("curve_allowed_keys")
    @classmethod
    def _are_curve_keys(cls, keys: dict[str, str]) -> dict[str, str]:
        for name, key in keys.items():
            if not valid_key(key):
                raise ValueError(f"the key of {name!r} is not 40 characters of Z85, as zmq.curve_keypair() makes it")
        return keys

    @model_validator(mode="after")
    def _encryption_is_complete(self) -> Self:
        secret = self.curve_secret_key.get_secret_value()
        if not any((self.curve_public_key, secret, self.curve_allowed_keys)):
            return self
        if not all((self.curve_public_key, secret, self.curve_allowed_keys)):
            raise ValueError("encryption needs all of curve_public_key, curve_secret_key and curve_allowed_keys")
        CurveKeys(self.curve_public_key, secret)
        return self

    def curve_keys(self) -> CurveKeys | None:
        if not self.curve_public_key:
            return None
        return CurveKeys(self.curve_public_key, self.curve_secret_key.get_secret_value())

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.liveness_seconds <= self.heartbeat_seconds:
            raise ValueError(
                f"liveness_seconds ({self.liveness_seconds:g}) must be above "
                f"heartbeat_seconds ({self.heartbeat_seconds:g})"
            )
        return self

    @property
    def anonymous(self) -> bool:
        """Whether everybody is served as long as there is no API key."""
        return self.allow_anonymous or _is_loopback(self.host)


def _is_whsec(text: str) -> bool:
    try:
        return text.startswith("whsec_") and 24 <= len(base64.b64decode(text[6:], validate=True)) <= 64
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
