"""Threads that go on to the next job."""

from __future__ import annotations

import threading
from queue import SimpleQueue

import pytest

from stage_server.runtime.threads import KEPT, Threads

TIMEOUT = 30.0


@pytest.fixture
def threads():
    made = Threads()
    yield made
    made.close()


def waiting(threads: Threads) -> int:
    return len(threads._idle)


def until_idle(threads: Threads, number: int) -> None:
    """A thread waits for work a moment after its last work is done."""
    deadline = threading.Event()
    for _ in range(3000):
        if waiting(threads) >= number:
            return
        deadline.wait(0.01)
    raise AssertionError(f"{waiting(threads)} threads are idle, fewer than {number}")


def test_one_thread_does_one_job_after_the_other_under_the_name_of_each(threads: Threads) -> None:
    seen: SimpleQueue[threading.Thread] = SimpleQueue()
    names: SimpleQueue[str] = SimpleQueue()

    def work() -> None:
        seen.put(threading.current_thread())
        names.put(threading.current_thread().name)

    threads.run("first", work)
    first = seen.get(timeout=TIMEOUT)
    until_idle(threads, 1)
    threads.run("second", work)
    assert seen.get(timeout=TIMEOUT) is first
    assert [names.get(), names.get()] == ["first", "second"]


def test_jobs_at_a_time_have_threads_of_their_own_of_which_a_few_are_kept(threads: Threads) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()
    seen: list[threading.Thread] = []

    def work() -> None:
        seen.append(threading.current_thread())
        begun.release()
        go_on.wait(TIMEOUT)

    for number in range(KEPT + 2):
        threads.run(f"job {number}", work)
    for _ in range(KEPT + 2):
        assert begun.acquire(timeout=TIMEOUT)
    go_on.set()
    until_idle(threads, KEPT)
    assert len(set(seen)) == KEPT + 2


def test_a_fault_ends_its_thread_and_is_told(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    told: SimpleQueue[threading.ExceptHookArgs] = SimpleQueue()
    monkeypatch.setattr(threading, "excepthook", told.put)

    def work() -> None:
        raise RuntimeError("a defect")

    threads.run("job 7", work)
    hook = told.get(timeout=TIMEOUT)
    assert hook.thread is not None
    assert (hook.thread.name, str(hook.exc_value)) == ("job 7", "a defect")
    assert waiting(threads) == 0


def test_after_the_end_no_thread_waits(threads: Threads) -> None:
    done: SimpleQueue[threading.Thread] = SimpleQueue()
    threads.run("job", lambda: done.put(threading.current_thread()))
    thread = done.get(timeout=TIMEOUT)
    until_idle(threads, 1)
    threads.close()
    thread.join(TIMEOUT)
    assert not thread.is_alive()
