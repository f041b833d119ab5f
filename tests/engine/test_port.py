"""The port with modules of a few weights: what is joined, what is not, and whose result is whose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from random import Random
from threading import Barrier
from typing import Any

import pytest
import torch
from diffusers.utils import BaseOutput
from torch import nn
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from stage_server.engine.base import JobCancelled, Unwatched
from stage_server.engine.port import ForwardPort, JobPort

PATIENCE = 240.0


class Control(Unwatched):
    def __init__(self) -> None:
        self.company: list[int] = []
        self.is_stopped = False

    def check(self) -> None:
        if self.is_stopped:
            raise JobCancelled

    def computed(self, company: int) -> None:
        self.company.append(company)


class Toy(nn.Module):
    """A linear layer that counts its calls by the number of their members, and does what a test wants besides."""

    def __init__(self, then: Callable[[torch.Tensor], None] = lambda _: None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        self.sizes: list[int] = []
        self.then = then

    def forward(self, x: torch.Tensor, t: torch.Tensor, *, shift: torch.Tensor | None = None, scale: float = 1) -> Any:
        self.sizes.append(len(x))
        self.then(x)
        moved = self.layer(x) * scale + t.reshape(-1, 1)
        return (moved if shift is None else moved + shift.sum(),)


def together(port: ForwardPort, *jobs: Callable[[JobPort], Any], adapters: Sequence[Any] = ()) -> list[Any]:
    """Run these at once, the first call of each with those of all others; what each returns or raises."""
    ready = Barrier(len(jobs))

    def run(number: int) -> Any:
        with port.open(Control(), share=True, adapters=adapters[number] if adapters else None) as mine:
            ready.wait(PATIENCE)
            try:
                return jobs[number](mine)
            except Exception as error:
                return error

    with ThreadPoolExecutor(len(jobs)) as threads:
        return list(threads.map(run, range(len(jobs))))


def latents(seed: int) -> torch.Tensor:
    return torch.randn(1, 4, generator=torch.Generator().manual_seed(seed))


def calls(module: nn.Module, seed: int, steps: int = 3, **options: Any) -> Callable[[JobPort], list[torch.Tensor]]:
    """A job of so many steps."""

    def job(port: JobPort) -> list[torch.Tensor]:
        double = port.stand_in(module)
        return [double(latents(seed + step), torch.tensor(float(step)), **options)[0] for step in range(steps)]

    return job


def alone(job: Callable[[JobPort], Any]) -> Any:
    with ForwardPort().open(Control()) as port:
        return job(port)


def equal(results: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    return all(torch.allclose(one, other, atol=1e-6) for one, other in zip(results, expected, strict=True))


def test_a_lone_job_calls_the_module_with_the_very_same_arguments() -> None:
    seen: list[int] = []
    toy = Toy(lambda x: seen.append(id(x)))
    x, t, control = latents(1), torch.tensor(0.5), Control()
    for share in (False, True):
        with ForwardPort().open(control, share=share) as port:
            assert torch.equal(port.stand_in(toy)(x, t)[0], toy(x, t)[0])
    assert set(seen) == {id(x)}
    assert control.company == [1, 1]


def test_a_stand_in_passes_for_the_module() -> None:
    toy = Toy()
    with ForwardPort().open(Control()) as port:
        double = port.stand_in(toy)
    assert isinstance(double, Toy)
    assert double.layer is toy.layer
    assert type(double).__name__ == "Toy"


def test_calls_of_equal_signature_are_one_once_that_is_proved() -> None:
    toy = Toy()
    jobs = [calls(toy, seed) for seed in (10, 20, 30, 40)]
    results = together(ForwardPort(), *jobs)
    assert toy.sizes[:6] == [1, 1, 2, 2, 4, 4]  # two alone, the same as a pair, the others of that round, two rounds
    assert all(equal(result, alone(job)) for result, job in zip(results, jobs, strict=True))


def test_what_differs_beyond_the_members_is_not_joined() -> None:
    toy, port = Toy(), ForwardPort()
    jobs = [
        calls(toy, 1, shift=torch.zeros(3)),
        calls(toy, 2, shift=torch.ones(3)),
        calls(toy, 3, scale=2.0),
        calls(toy, 4, scale=3.0),
    ]
    results = together(port, *jobs)
    assert set(toy.sizes) == {1}
    assert all(equal(result, alone(job)) for result, job in zip(results, jobs, strict=True))


def test_equal_tensors_that_belong_to_no_member_are_passed_once() -> None:
    toy = Toy()
    jobs = [calls(toy, seed, shift=torch.arange(3.0)) for seed in (1, 2)]
    results = together(ForwardPort(), *jobs)
    assert toy.sizes[2:] == [2, 2, 2]
    assert all(equal(result, alone(job)) for result, job in zip(results, jobs, strict=True))


class FirstPositions(nn.Module):
    """Reads the positions of the first member for all, as FLUX.2 does."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        return x * ids[0]


def test_what_was_equal_when_joining_was_learned_is_not_taken_to_be_each_members_own() -> None:
    module, port = FirstPositions(), ForwardPort()

    def job(seed: int, ids: torch.Tensor) -> Callable[[JobPort], list[torch.Tensor]]:
        return lambda mine: [mine.stand_in(module)(latents(seed + step), ids) for step in range(3)]

    wide, high = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    together(port, job(1, wide), job(11, wide.clone()))
    assert module.sizes == [1, 1, 2, 2, 2]
    jobs = [job(21, wide), job(31, high), job(41, wide.clone()), job(51, high.clone())]
    results = together(port, *jobs)
    assert module.sizes[-2:] == [2, 2], "those of equal positions are joined as before"
    assert all(equal(result, alone(job)) for result, job in zip(results, jobs, strict=True))


class Slightly(FirstPositions):
    """Positions change little of its result."""

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return x + 0.03 * super().forward(x, ids)


def test_in_narrow_types_anothers_arguments_do_not_pass_for_rounding() -> None:
    module, port = Slightly(), ForwardPort()

    def job(seed: int, ids: torch.Tensor) -> Callable[[JobPort], list[torch.Tensor]]:
        return lambda mine: [mine.stand_in(module)(latents(seed + step).bfloat16(), ids) for step in range(3)]

    wide, high = torch.tensor([[0.5, 0.5, 1.0, 1.0]]).bfloat16(), torch.tensor([[1.0, 1.0, 0.5, 0.5]]).bfloat16()
    together(port, job(1, wide), job(11, wide.clone()))
    assert module.sizes[-1] == 2
    jobs = [job(21, wide), job(31, high)]
    results = together(port, *jobs)
    for result, each in zip(results, jobs, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(result, alone(each), strict=True))


class Unpadded(nn.Module):
    """Takes lists, and adds up what it padded them with."""

    def forward(self, x: torch.Tensor, caps: list[torch.Tensor]) -> torch.Tensor:
        longest = max(map(len, caps))
        return x * torch.tensor([cap.sum() + (longest - len(cap)) for cap in caps])[:, None]


def test_what_was_learned_of_equal_lengths_is_not_taken_to_hold_for_others() -> None:
    module, port = Unpadded(), ForwardPort()

    def job(seed: int, length: int) -> Callable[[JobPort], list[torch.Tensor]]:
        return lambda mine: [
            mine.stand_in(module)(latents(seed + step), [torch.full((length,), 1.0 + seed)]) for step in range(3)
        ]

    together(port, job(1, 3), job(11, 3))
    assert port._plans
    jobs = [job(21, 3), job(31, 9), job(41, 3)]
    results = together(port, *jobs)
    assert all(equal(result, alone(job)) for result, job in zip(results, jobs, strict=True))


def test_one_pair_that_may_not_be_joined_spoils_nothing_for_others() -> None:
    toy, port = Toy(), ForwardPort()
    together(port, calls(toy, 1, shift=torch.zeros(3)), calls(toy, 11, shift=torch.ones(3)))
    assert set(toy.sizes) == {1}
    together(port, calls(toy, 21, shift=torch.ones(3)), calls(toy, 31, shift=torch.ones(3)))
    assert toy.sizes[-1] == 2


class Ragged(nn.Module):
    """Takes and gives one tensor per member, whose lengths differ."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, x: list[torch.Tensor], caps: list[torch.Tensor], t: torch.Tensor) -> tuple[list[torch.Tensor]]:
        self.sizes.append(len(x))
        return ([item * 2 + cap.sum() + time for item, cap, time in zip(x, caps, t, strict=True)],)


def test_lists_of_members_may_be_ragged() -> None:
    module = Ragged()

    def job(length: int) -> Callable[[JobPort], list[torch.Tensor]]:
        def run(port: JobPort) -> list[torch.Tensor]:
            double = port.stand_in(module)
            x, cap = torch.arange(length * 1.0), torch.ones(length + 1, 2)
            return [double(x=[x], caps=[cap], t=torch.tensor([step * 1.0]))[0][0] for step in range(3)]

        return run

    jobs = [job(length) for length in (2, 5, 3)]
    results = together(ForwardPort(), *jobs)
    assert 3 in module.sizes
    assert all(equal(result, alone(job)) for result, job in zip(results, jobs, strict=True))


class Mixing(nn.Module):
    """Members see each other, as where something is normalized over the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


class Unheard(nn.Module):
    """Gives an object that nobody knows how to take apart."""

    def forward(self, x: torch.Tensor) -> object:
        return type("Answer", (), {"sample": x})()


@pytest.mark.parametrize("module", [Mixing(), Unheard()], ids=lambda module: type(module).__name__)
def test_a_module_that_cannot_be_joined_is_found_out_and_called_singly(module: nn.Module) -> None:
    def job(seed: int) -> Callable[[JobPort], list[torch.Tensor]]:
        def run(port: JobPort) -> list[torch.Tensor]:
            answers = [port.stand_in(module)(latents(seed + step)) for step in range(3)]
            return [getattr(answer, "sample", answer) for answer in answers]

        return run

    jobs = [job(seed) for seed in (1, 11, 21)]
    results = together(ForwardPort(), *jobs)
    assert all(equal(result, alone(job)) for result, job in zip(results, jobs, strict=True))


class TextModel(nn.Module):
    """Answers as transformers do: hidden states of every layer, and a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, input_ids: torch.Tensor) -> BaseModelOutputWithPast:
        self.sizes.append(len(input_ids))
        states = input_ids[..., None].float().expand(-1, -1, 4)
        return BaseModelOutputWithPast(
            last_hidden_state=states, past_key_values=DynamicCache(), hidden_states=(states, states + 1)
        )


def test_outputs_of_libraries_are_taken_apart() -> None:
    module = TextModel()

    def job(token: int) -> Callable[[JobPort], list[torch.Tensor]]:
        def run(port: JobPort) -> list[torch.Tensor]:
            output = [port.stand_in(module)(torch.tensor([[token, step]])) for step in range(2)][-1]
            return [output.last_hidden_state, output.hidden_states[1], output[0]]

        return run

    jobs = [job(token) for token in (1, 2, 3)]
    results = together(ForwardPort(), *jobs)
    assert module.sizes[-1] == 3
    assert all(equal(result, alone(job)) for result, job in zip(results, jobs, strict=True))


class Decoded(BaseOutput):
    sample: torch.Tensor


class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def decode(self, z: torch.Tensor, return_dict: bool = True) -> Any:
        self.sizes.append(len(z))
        return Decoded(sample=z + 1) if return_dict else (z + 1,)


def test_decoding_is_joined_and_shown_to_whoever_looks() -> None:
    vae = Vae()

    def job(seed: int) -> Callable[[JobPort], torch.Tensor]:
        def run(port: JobPort) -> torch.Tensor:
            seen: list[torch.Tensor] = []
            port.decoded = seen.append
            result: torch.Tensor = [port.stand_in(vae).decode(latents(seed + step))[0] for step in (0, 1)][-1]
            assert torch.equal(seen[-1], result)
            return result

        return run

    results = together(ForwardPort(), job(1), job(5), job(9))
    assert vae.sizes[-1] == 3
    assert equal(results, [latents(seed + 1) + 1 for seed in (1, 5, 9)])


def test_memory_that_does_not_suffice_for_all_halves_them() -> None:
    def little(x: torch.Tensor) -> None:
        if len(x) > 2:
            raise torch.OutOfMemoryError("no more")

    toy, port = Toy(little), ForwardPort()
    jobs = [calls(toy, seed, steps=4) for seed in (1, 11, 21, 31)]
    results = together(port, *jobs)
    assert toy.sizes == [1, 1, 2, 2, *(4, 2, 2), *(2, 2), *(2, 2)], "what did not fit is not tried again"
    assert all(equal(result, alone(job)) for result, job in zip(results, jobs, strict=True))


def test_a_failure_is_that_of_the_job_alone() -> None:
    poison = latents(1)

    def refuse(x: torch.Tensor) -> None:
        if any(torch.equal(member, poison[0]) for member in x):
            raise ValueError("not this one")

    toy = Toy(refuse)
    healthy = [calls(toy, seed) for seed in (11, 21)]
    failed, *results = together(ForwardPort(), calls(toy, 1), *healthy)
    assert isinstance(failed, ValueError)
    toy.then = lambda _: None
    assert all(equal(result, alone(job)) for result, job in zip(results, healthy, strict=True))


def test_no_call_begins_for_a_job_that_was_stopped() -> None:
    toy, control = Toy(), Control()
    with ForwardPort().open(control, share=True) as port:
        double = port.stand_in(toy)
        double(latents(1), torch.tensor(0.0))
        control.is_stopped = True
        with pytest.raises(JobCancelled):
            double(latents(2), torch.tensor(0.0))
    assert toy.sizes == [1]


def test_adapters_are_on_for_their_own_calls_and_joined_only_with_their_like() -> None:
    active: list[object] = [None]
    seen: list[tuple[object, int]] = []

    @contextmanager
    def activate(_: Any, adapters: object) -> Iterator[None]:
        active[0] = adapters
        yield
        active[0] = None

    toy = Toy(lambda x: seen.append((active[0], len(x))))
    jobs = [calls(toy, seed) for seed in (1, 11, 21, 31)]
    together(ForwardPort(activate), *jobs, adapters=["a", "a", "b", None])
    assert {adapters for adapters, size in seen if size > 1} == {"a"}
    assert {adapters for adapters, _ in seen} == {"a", "b", None}
    assert active == [None]


@pytest.mark.parametrize("seed", range(20))
def test_random_joins_leaves_cancels_and_failures(seed: int) -> None:
    """Whatever the others do, a job that ends has the results that it has alone, and no other."""
    chance = Random(seed)
    bad = torch.randn(1, 4, generator=torch.Generator().manual_seed(9999))

    def fail(x: torch.Tensor) -> None:
        if any(torch.equal(member, bad[0]) for member in x):
            raise RuntimeError("a job of its own making")

    toy, port = Toy(fail), ForwardPort()
    fates = [chance.choice(("ends", "ends", "fails", "stops")) for _ in range(7)]
    turns = [chance.randint(0, 4) for _ in fates]
    lengths = [chance.randint(5, 9) for _ in fates]

    def job(number: int) -> list[torch.Tensor]:
        control, results = Control(), list[torch.Tensor]()
        with port.open(control, share=True) as mine:
            double = mine.stand_in(toy)
            for step in range(lengths[number]):
                if step == turns[number] and fates[number] == "stops":
                    control.is_stopped = True
                is_bad = step == turns[number] and fates[number] == "fails"
                x = bad if is_bad else latents(100 * number + step)
                results.append(double(x, torch.tensor(float(step)))[0])
        return results

    with ThreadPoolExecutor(4) as threads:  # so some join while others are midway
        running = [threads.submit(job, number) for number in range(len(fates))]
    for number, each in enumerate(running):
        if fates[number] == "ends":
            toy.then = lambda _: None
            expected = [toy(latents(100 * number + n), torch.tensor(float(n)))[0] for n in range(lengths[number])]
            assert equal(each.result(), expected)
        else:
            with pytest.raises(RuntimeError if fates[number] == "fails" else JobCancelled):
                each.result()
