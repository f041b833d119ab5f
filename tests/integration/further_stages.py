"""What tests of stages that only some requests pass through have in common."""

from __future__ import annotations

import asyncio
from pathlib import Path

from scheduler import actions as act
from scheduler import events as ev

PROFILE = Path(__file__).with_name("slow.toml")
BODY = {"prompt": "a star", "size": "64x48", "num_inference_steps": 2, "seed": 7}


def server_with(service, folder, section):
    """A function that starts a server of the model that also has that stage, whether it holds its role or not."""
    profile = folder / "further.toml"
    profile.write_text(PROFILE.read_text() + section)

    async def start(name, *roles):
        return await service.serve(name, *roles, options=("--profile", str(profile)))

    return start


def asked(http, **more):
    return asyncio.create_task(http.post("/v1/images/generations", json=BODY | more))


async def started(service, role):
    run = await service.tape.find(act.Run, lambda action: action.role is role)
    return await service.tape.find(ev.JobStarted, lambda event: event.epoch == run.epoch)
