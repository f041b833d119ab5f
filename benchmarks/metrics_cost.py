"""What metrics add to a request, in process: all that is counted for one, against what a request costs the gateway.

python -m benchmarks.metrics_cost [--request-ms MS]

``--request-ms``: the gateway's processor time per request, as ``benchmarks.gateway_cost --only 5`` prints it.
"""

from __future__ import annotations

import argparse
import asyncio
import time

from gateway.metrics.instruments import Instruments
from gateway.metrics.measured import Measured
from gateway.metrics.pipeline import PipelineCounts
from gateway.service.interfaces import Finished, ImageRequest, Listener, StageReport, unheard
from scheduler import actions as act
from scheduler import events as ev
from scheduler.cost.work import Work
from scheduler.spec import Input, JobSpec, RequestSpec
from wire.params import ImageParams
from wire.types import REQUIRED, Epoch, Handle, JobId, ModelKey, RequestId, Role, ServerId

REQUESTS, ROUNDS = 2000, 5
ROLES = REQUIRED
R = RequestId("r")
WHY = {"cause": 1, "reason": ""}


class Drawn:
    """Answers at once, with three stages."""

    def __init__(self) -> None:
        self._answer = Finished((b"",), tuple(StageReport(role, 0, "s", 1, 0.1, 0.1, 0.1, 0.1) for role in ROLES), 0.5)

    async def generate(self, _request: ImageRequest, _listener: Listener = unheard) -> Finished:
        return self._answer


def told() -> list[tuple[ev.Event, list[act.Action]]]:
    """What the scheduler hears and does about one request."""
    epoch, server, source = Epoch("g", 1), ServerId("a/1"), Input(Handle("h"), ServerId("b/1"), 1000)
    encoder = JobSpec(JobId("r/encoder"), Role.ENCODER, Work(Role.ENCODER))
    decoder = JobSpec(JobId("r/decoder"), Role.DECODER, Work(Role.DECODER, height=64, width=64), (encoder.id,))
    runs = [
        act.Run(**WHY, server=server, role=role, job=JobId("r/x"), epoch=epoch, inputs=(source,), deadline=9.0)
        for role in ROLES
    ]
    steps: list[tuple[ev.Event, list[act.Action]]] = [
        (
            ev.RequestArrived(RequestSpec(R, ModelKey("m@1"), (encoder, decoder), 9.0)),
            [act.Admit(**WHY, request=R, predicted_seconds=1.0), runs[0]],
        )
    ]
    for run in (*runs[1:], act.FetchResult(**WHY, request=R, job=decoder.id, source=source)):
        steps += [(ev.JobFetched(server, epoch), []), (ev.JobStarted(server, epoch), [])]
        steps.append((ev.JobDone(server, epoch, ()), [run]))
    return [*steps, (ev.ResultTaken(decoder.id), [act.Finish(**WHY, request=R)])]


async def seconds(measured: bool) -> float:
    """Processor time of one request, the best of several rounds."""
    instruments, drawn = Instruments(), Drawn()
    service = Measured(drawn, instruments) if measured else drawn  # type: ignore[arg-type]
    counts, steps = PipelineCounts(instruments), told()
    request = ImageRequest("r", "m", (ImageParams(workflow="text2image", prompt="x"),), 60.0)
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(REQUESTS):
            await service.generate(request)
            if measured:
                for event, actions in steps:
                    counts.note(event, actions)
                instruments.http_active("POST").inc()
                instruments.http_active("POST").dec()
                instruments.http_seconds("POST", "/v1/images/generations", "200").observe(0.1)
        best = min(best, (time.process_time() - began) / REQUESTS)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--request-ms", type=float, help="the gateway's processor time per request")
    chosen = parser.parse_args()
    added = asyncio.run(seconds(measured=True)) - asyncio.run(seconds(measured=False))
    print(f"metrics add {added * 1e6:.1f} us to a request (best of {ROUNDS} rounds of {REQUESTS})")
    if chosen.request_ms:
        print(f"that is {added * 1e3 / chosen.request_ms:.2%} of {chosen.request_ms:g} ms (goal: <= 2 %)")


if __name__ == "__main__":
    main()
