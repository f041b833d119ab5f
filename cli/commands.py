"""What ``disagfusion`` can do, and where that is. Imports nothing of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    what: str
    module: str
    function: str = "main"
    extra: str = ""
    """Of ``pip install "disagfusion[…]"``, which brings what the command imports."""
    before: tuple[str, ...] = ()
    """Arguments that go before those of the person who called."""
    program: str = "disagfusion"
    """What its usage line begins with."""
    stops_with: int | None = None
    """Exit status of a process that is told to end while it still imports; none: 130, for Ctrl-C alone."""


GATEWAY, STAGE = "gateway.__main__", "stage_server.__main__"

COMMANDS: dict[str, Command] = {
    "serve": Command(
        "a gateway with stage servers of the bundled model, on this machine",
        GATEWAY,
        extra="gateway,stage",
        before=("--local",),
        program="disagfusion serve",
    ),
    "gateway": Command(
        "the gateway alone; stage servers connect to it", GATEWAY, extra="gateway", program="disagfusion gateway"
    ),
    "stage": Command("a stage server", STAGE, extra="stage", program="disagfusion stage", stops_with=0),
    "relay": Command(
        "carry data for stage servers that others cannot connect to",
        "stage_server.relay.command",
        extra="gateway",
        program="disagfusion",
        stops_with=0,
    ),
    "fleet": Command(
        "gateways and stage servers as a file describes them: up, status, scale, down",
        "fleet.command",
        program="disagfusion fleet",
    ),
    "generate": Command("pictures from a text", "clients.generate", extra="clients"),
    "edit": Command("a picture from pictures and a text", "clients.edit", extra="clients"),
    "jobs": Command("jobs that outlive their connection: post, list, wait, delete", "clients.jobs", extra="clients"),
    "batch": Command("a file of many requests", "clients.batch", extra="clients"),
    "top": Command("the pipeline in a terminal: servers, queues, requests", "clients.top.command", extra="clients"),
    "load": Command("measure a service under load", "clients.load.command", extra="clients"),
    "config": Command("every setting of the gateway, its value and where it comes from", "gateway.config_command"),
    "doctor": Command("what keeps this machine from serving, and what to do about it", "cli.doctor.command"),
    "keys": Command("make, list and revoke API keys", "gateway.accounts.command", extra="gateway"),
    "plan": Command(
        "which GPUs, how many and with which roles, for a load at an SLO", "scheduler.sim.plan_cli", extra="gateway"
    ),
    "simulate": Command("a scenario in virtual time", "scheduler.sim.cli", "simulate_main", extra="gateway"),
    "predict": Command("what a request would cost", "scheduler.cost.predict_cli", extra="gateway"),
    "profile": Command("time a model on this device, for the scheduler", STAGE, extra="stage", before=("profile",)),
    "memory": Command("what a model takes in each format of weights", STAGE, extra="stage", before=("memory",)),
}
