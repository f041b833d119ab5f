"""One job in its thread."""

from __future__ import annotations

from queue import SimpleQueue
from time import monotonic
from typing import Any

from stage_server.data.consumer import Consumer
from stage_server.data.mailbox import Mailbox
from stage_server.data.store import OutputStore
from stage_server.engine.base import BadJob
from stage_server.runtime.baton import Baton
from stage_server.runtime.events import Begin, Broke, JobEvent, JobKey
from stage_server.runtime.worker import Plant, Worker
from wire.bundle import unpack
from wire.params import ImageParams
from wire.to_stage import Half, InputRef, Member, Run
from wire.types import Epoch, Handle, Role

BOUND = 20.0
MINE, THEIRS = Handle("ab" * 16), Handle("cd" * 16)


class Unable:
    """An engine that refuses every job."""

    def output_bound(self, job: Any) -> int:
        raise BadJob("no")

    def peak_bytes(self) -> int:
        return 0


def test_a_job_that_ends_before_its_first_step_tells_its_partner() -> None:
    told: SimpleQueue[JobEvent] = SimpleQueue()
    mailbox, consumer = Mailbox(), Consumer()
    engine: Any = Unable()
    plant = Plant(engine, Baton(), OutputStore(1 << 20), consumer, told.put, mailbox=mailbox)
    half = Half(handle=MINE, partner=InputRef(handle=THEIRS, endpoint="tcp://127.0.0.1:1"), leads=True)
    member = Member(epoch=Epoch("g", 1), params=ImageParams(), half=half)
    run = Run(role=Role.DIT, members=(member,), remaining_seconds=BOUND)

    Worker(Begin(JobKey(1), run, monotonic() + BOUND), plant).start()

    assert isinstance(told.get(timeout=BOUND), Broke)
    lying = mailbox.get(Handle(f"{MINE}.1"))
    assert lying is not None
    assert unpack(lying) == {}
    consumer.close()
