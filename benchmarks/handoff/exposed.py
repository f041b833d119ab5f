"""Row 2: what a device waits between two stages when its input is ready upstream and it has nothing else to do.

From the router's hearing that the encoder is done to its hearing that the dit is, less what the dit's device computed
and its host did with the outputs: what is left is ours, the message at the end included. The decision that a gateway
would take is left out on both sides. Ours and bare pyzmq take turns, with payloads of the same size.

The message that the device starts is no mark: it waits for the interpreter, which a small model keeps busy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.handoff.bare import hand_offs
from benchmarks.handoff.driver import Driver, percentile, servers
from benchmarks.rows import Goal, Row, show
from wire.params import ImageParams
from wire.to_gateway import StageDone
from wire.types import Role

ROUNDS = 300
WARM_UP = 10
COMMAND = "python -m benchmarks.handoff.exposed"
ENGINES = {
    "emulated": (
        ["--engine", "emulated", "--profile", "flux.1-dev-h100", "--time-scale", "0.001"],
        ImageParams(prompt="a red circle", width=1024, height=1024, num_inference_steps=1),
    ),
    "torch": (
        ["--model", "tiny-shapes", "--threads", "1"],
        ImageParams(prompt="a red circle", width=64, height=64, num_inference_steps=1, seed=1),
    ),
}


def rows(rounds: int = ROUNDS) -> list[Row]:
    found = []
    for engine in ENGINES:
        ours, bare, nbytes = _measured(engine, rounds)
        for share, most in ((0.5, 2.0), (0.99, 4.0)):
            mine, theirs = percentile(ours, share), percentile(bare, share)
            case = f"p{share * 100:g}, {nbytes / 1e6:.3f} MB: {mine * 1e3:.2f} ms against {theirs * 1e3:.2f} ms"
            found.append(_row(case, mine / theirs, most, engine))
    return found


def _measured(engine: str, rounds: int) -> tuple[list[float], list[float], int]:
    """Seconds of ours, seconds of bare pyzmq, bytes of one hand-off."""
    with _pipeline(engine) as (ours, nbytes):
        bare = hand_offs(nbytes)
        mine, theirs = [], []
        for _ in range(WARM_UP + rounds):
            mine.append(next(ours))
            theirs.append(next(bare))
        bare.close()
    return mine[WARM_UP:], theirs[WARM_UP:], nbytes


@contextmanager
def _pipeline(engine: str) -> Iterator[tuple[Iterator[float], int]]:
    options, params = ENGINES[engine]
    driver = Driver()
    try:
        with servers(driver, {role: ["--role", role, *options] for role in ("encoder", "dit")}):
            encoded = driver.expect(StageDone, driver.run("encoder", Role.ENCODER, params))[1]
            nbytes = sum(reference.nbytes for reference in driver.inputs("encoder", encoded, Role.DIT))
            driver.release("encoder", encoded)
            yield _hand_offs(driver, params), nbytes
    finally:
        driver.close()


def _hand_offs(driver: Driver, params: ImageParams) -> Iterator[float]:
    while True:
        done_at, encoded = driver.expect(StageDone, driver.run("encoder", Role.ENCODER, params))
        epoch = driver.run("dit", Role.DIT, params, *driver.inputs("encoder", encoded, Role.DIT))
        ended_at, denoised = driver.expect(StageDone, epoch)
        driver.release("encoder", encoded)
        driver.release("dit", denoised)
        yield ended_at - done_at - denoised.timings.compute - denoised.timings.publish


def _row(case: str, value: float, most: float, engine: str) -> Row:
    measure = "exposed hand-off over the same exchanges in bare pyzmq, without a gateway"
    return Row(
        2,
        measure,
        case,
        value,
        "×",
        Goal("<=", most),
        engine,
        COMMAND,
        (),
    )


def main() -> None:
    show(rows())


if __name__ == "__main__":
    main()
