"""What ``jobs`` and ``batch`` say while they wait, and how they wait."""

from __future__ import annotations

import pytest

from clients import batch, jobs
from clients.events import Refused
from clients.service import RETRIES, Service

JOB = {"status": "queued", "queue_position": 3, "predicted_completion_at": 112, "progress": None}


@pytest.mark.parametrize(
    ("job", "line"),
    [
        (JOB, "queued  place 3  done in about 12 s"),
        (JOB | {"queue_position": None, "predicted_completion_at": None}, "queued"),
        (
            JOB | {"status": "in_progress", "progress": {"step": 6, "steps": 8}, "predicted_completion_at": 90},
            "[##################------] step 6/8  done in about 0 s",
        ),
    ],
)
def test_how_far_a_job_is(job, line):
    assert jobs.told(job, 100.0) == line


def test_how_far_a_batch_is():
    counts = {"total": 8, "completed": 3, "failed": 1}
    told = batch.told({"status": "in_progress", "request_counts": counts})
    assert told == "in progress  [############------------] 4/8  1 failed"
    assert batch.told({"status": "validating", "request_counts": dict.fromkeys(counts, 0)}) == "validating"


class Server(Service):
    """Answers with what it is given, in turn; the last again and again."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.pauses = []
        super().__init__("http://host/v1", 1.0, self.pauses.append)

    def call(self, method, path, **more):
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_server_that_restarts_is_waited_for():
    gone = Refused("starting", "not_ready", 503)
    with Server({"done": 0}, gone, gone, {"done": 1}) as server:
        assert list(server.watch("/x", lambda found: found["done"])) == [{"done": 0}, {"done": 1}]
        assert server.pauses == sorted(server.pauses)
        assert len(server.pauses) == 3


def test_not_for_ever_and_not_for_what_is_refused():
    with Server(Refused("starting", "not_ready", 503)) as server:
        with pytest.raises(Refused):
            list(server.watch("/x", bool))
        assert len(server.pauses) == RETRIES
    with Server(Refused("no such job", "job_not_found", 404)) as server:
        with pytest.raises(Refused):
            list(server.watch("/x", bool))
        assert server.pauses == []
