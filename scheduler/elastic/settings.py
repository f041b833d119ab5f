"""Every knob of the elastic scheduler. ``docs/scheduling.md`` says when to turn which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite

from scheduler.roles.gate import PolicySettings
from wire.bounded import MAX_KEEP_SECONDS


class Ordering(StrEnum):
    SHORTEST = "shortest"
    """Shortest predicted remaining work first, with aging."""
    FIRST_COME = "first-come"


LEAST: dict[str, float] = {
    "aging": 0,
    "bypass_share": 0,
    "patience": 0,
    "urgent_share": 0,
    "max_requests": 1,
    "lead_margin_seconds": 0,
    "slow_ratio": 1,
    "suspect_failures": 1,
    "probation_seconds": 1,
    "max_batch": 1,
    "preemption_ratio": 1,
    "preemption_overhead_seconds": 0,
    "max_preemptions": 1,
    "keep_seconds": 0,
    "handover_seconds": 0,
    "swap_seconds": 0,
    "share_gain_seconds": 0,
    "backlog_horizon_seconds": 1,
}
"""Of the knobs that are numbers, the smallest value that makes sense."""


@dataclass(frozen=True, slots=True)
class ElasticSettings:
    # --- order
    ordering: Ordering = Ordering.SHORTEST
    aging: float = 0.02
    """Seconds of work by which a job's key falls behind those of later ones per second between their arrivals."""
    bypass_share: float = 0.0
    """Later jobs may overtake a job by this share of the work that waited when it was queued, and …"""
    patience: float = 3.0
    """… by what all servers do in this many times its own duration, but by no more."""
    urgent_share: float = 0.25
    """A job goes first once its deadline is no further away than its own remaining time and this share of it."""
    tenant_shares: Mapping[str, float] = field(default_factory=dict)
    """Weights of tenants that are not 1."""
    # --- admission
    max_requests: int = 1000
    """Under way at one time."""
    admission_quantile: float = 0.98
    """Share of admitted requests that are to meet their deadlines."""
    # --- placement
    lead_margin_seconds: float = 0.05
    """A server gets its next job this long before the device is free, and the usual time of fetching before that."""
    slow_ratio: float = 1.5
    """A server this many times slower than the fastest waits for jobs until queueing for a faster one takes longer."""
    suspect_failures: int = 2
    """Failed jobs in a row after which a server is suspect."""
    probation_seconds: float = 15.0
    """Until a suspect server gets one job on trial; doubled every time it fails."""
    # --- batching
    max_batch: int = 8
    """Jobs that compute together on one device, where it allows as many; 1 turns it off."""
    # --- preemption
    preemption: bool = True
    preemption_ratio: float = 4.0
    """A running job gives way only to one that is this many times shorter than what remains of it."""
    preemption_overhead_seconds: float = 0.2
    """The least gain: switching a device between jobs costs about that."""
    max_preemptions: int = 1
    """Of one job on one server."""
    keep_seconds: float = 0.05
    """How long a paused job waits for the next stage of the request that it was paused for."""
    # --- going on elsewhere
    migration: bool = True
    """Denoising goes on on another server, from the step reached, where that is predicted to be a gain."""
    handover_seconds: float = 0.2
    """What that costs: the end of a step, a transfer and the start there. A job shorter than that stays."""
    # --- guidance on two servers
    share_guidance: bool = True
    """A server that has nothing to do computes half of each guided step of another's, until it gets a job."""
    swap_seconds: float = 0.01
    """What it costs per step: each sends the other what it computed."""
    share_gain_seconds: float = 0.2
    """The least gain that is worth it."""
    # --- roles
    elastic_roles: bool = True
    roles: PolicySettings = field(default_factory=PolicySettings)
    backlog_horizon_seconds: float = 30.0
    """Roles are planned as if a backlog had to be worked off within this time."""

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not (isfinite(value) and value >= least):
                raise ValueError(f"{name} is {least} or more, not {value}")
        if self.keep_seconds > MAX_KEEP_SECONDS:
            raise ValueError(f"keep_seconds is {MAX_KEEP_SECONDS} or less, not {self.keep_seconds}")
        if not 0.5 <= self.admission_quantile < 1:
            raise ValueError(f"admission_quantile is from 0.5 to below 1, not {self.admission_quantile}")
        for tenant, share in self.tenant_shares.items():
            if not (isfinite(share) and share > 0):
                raise ValueError(f"the share of tenant {tenant} is above 0, not {share}")
