"""LoRA adapters: each job is made with its own, whatever interleaves; without one not a bit changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from stage_server.engine.base import BadJob, OutOfMemory, Outputs, StageJob, Unwatched
from stage_server.engine.compiled import Compiler
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.low_rank import LowRank
from tests.loras import lora, write
from wire.params import AdapterUse, ImageParams
from wire.types import Role
from wire.values import Tensor

MODEL = "tiny-shapes"
PATIENCE = 240.0
ROOM = 1 << 30


def params(*uses: AdapterUse, seed: int = 1, **options: Any) -> ImageParams:
    given = {"prompt": "a green star", "width": 64, "height": 64, "num_inference_steps": 3, "guidance_scale": 3.0}
    return ImageParams(seed=seed, adapters=uses, **given | options)


def latents(outputs: Outputs) -> torch.Tensor:
    tensor = outputs[Role.DECODER]["latents"]
    assert isinstance(tensor, Tensor)
    return torch.frombuffer(bytearray(tensor.data), dtype=torch.float32)


@dataclass
class Bench:
    """A dit engine with adapters ``a`` and ``b``, and an encoder that has made its inputs."""

    engine: DiffusersEngine
    inputs: dict[str, Any]
    steps: type
    sources: Mapping[str, str]

    def use(self, name: str, scale: float = 1.0) -> AdapterUse:
        digests = {adapter.name: adapter.digest for adapter in self.engine.describe().adapters}
        return AdapterUse(name, digests[name], scale)

    def draw(self, *uses: AdapterUse, control: Any = None, share: bool = False, **options: Any) -> torch.Tensor:
        job = StageJob(Role.DIT, params(*uses, **options), share=share)
        return latents(self.engine.run(job, self.inputs, control or self.steps()))


def dit(sources: Mapping[str, str], limit: int = ROOM) -> DiffusersEngine:
    engine = DiffusersEngine(MODEL, adapters=sources, adapter_bytes=limit)
    engine.set_roles(frozenset({Role.DIT}))
    return engine


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("loras")
    return {name: write(folder / f"{name}.safetensors", lora(MODEL, seed)) for seed, name in enumerate("ab")}


@pytest.fixture(scope="module")
def inputs(split_engines: Callable[[str], Mapping[Role, DiffusersEngine]]) -> dict[str, Any]:
    made = split_engines(MODEL)[Role.ENCODER].run(StageJob(Role.ENCODER, params()), {}, Unwatched())
    return dict(made[Role.DIT])


@pytest.fixture(scope="module")
def shared(sources: dict[str, str]) -> DiffusersEngine:
    return dit(sources)


@pytest.fixture
def bench(shared: DiffusersEngine, inputs: dict[str, Any], steps: type, sources: dict[str, str]) -> Bench:
    return Bench(shared, inputs, steps, sources)


def test_what_is_allowed_is_announced_with_the_stages_that_it_changes(bench: Bench) -> None:
    adapters = bench.engine.describe().adapters
    assert [(adapter.name, adapter.roles) for adapter in adapters] == [("a", (Role.DIT,)), ("b", (Role.DIT,))]
    assert len({adapter.digest for adapter in adapters}) == 2
    assert not any("/" in str(adapter) for adapter in adapters)


def test_without_adapters_not_a_bit_differs_from_a_server_that_allows_none(
    bench: Bench, split_engines: Callable[[str], Mapping[Role, DiffusersEngine]]
) -> None:
    job = StageJob(Role.DIT, params())
    plain = latents(split_engines(MODEL)[Role.DIT].run(job, bench.inputs, bench.steps()))
    assert torch.equal(bench.draw(), plain)
    adapted = bench.draw(bench.use("a"))
    assert not torch.equal(adapted, plain)
    assert torch.equal(bench.draw(), plain)
    assert torch.equal(bench.draw(bench.use("a", 0.0)), plain)
    assert torch.equal(bench.draw(bench.use("a")), adapted)


def test_an_adapter_is_as_if_its_product_had_been_added_to_the_weights(bench: Bench) -> None:
    merged = dit({})
    module = merged._pipeline.transformer
    for name, scale in (("a", 0.5), ("b", -1.5)):
        state = lora(MODEL, "ab".index(name))
        for key in [key for key in state if "lora_A" in key]:
            layer = module.get_submodule(key.removeprefix("transformer.").partition(".lora_A")[0])
            layer.weight.data += scale * state[key.replace("lora_A", "lora_B")] @ state[key]
    wanted = latents(merged.run(StageJob(Role.DIT, params()), bench.inputs, bench.steps()))
    both = bench.draw(bench.use("a", 0.5), bench.use("b", -1.5))
    torch.testing.assert_close(both, wanted, rtol=2e-3, atol=2e-3)
    assert not torch.allclose(bench.draw(bench.use("a", 0.5)), wanted, rtol=2e-3, atol=2e-3)


def test_interleaving_jobs_have_each_its_own(bench: Bench) -> None:
    """Three jobs on one module, handing the device round after every step: two adapters and none."""
    kinds = [(bench.use("a"),), (), (bench.use("b", 0.7),)]
    alone = [bench.draw(*uses) for uses in kinds]
    assert len({tuple(drawn.tolist()) for drawn in alone}) == 3
    turn, changed = [0], threading.Condition()

    def take(mine: int) -> None:
        with changed:
            assert changed.wait_for(lambda: turn[0] % 3 == mine, PATIENCE)

    def give(mine: int) -> Callable[[int], None]:
        def then(step: int) -> None:
            with changed:
                turn[0] += 1
                changed.notify_all()
            if step < 3:
                take(mine)

        return then

    def work(mine: int) -> torch.Tensor:
        take(mine)
        return bench.draw(*kinds[mine], control=bench.steps(give(mine)))

    with ThreadPoolExecutor(3) as pool:
        drawn = [each.result(PATIENCE) for each in [pool.submit(work, mine) for mine in range(3)]]
    assert all(torch.equal(one, other) for one, other in zip(drawn, alone, strict=True))


def test_jobs_that_share_the_device_are_joined_only_with_their_like(
    monkeypatch: pytest.MonkeyPatch, sources: dict[str, str], bench: Bench
) -> None:
    """Six at once, in pairs: each is what it is alone, up to the rounding of company."""
    engine = DiffusersEngine(MODEL, adapters=sources, adapter_bytes=ROOM, together={Role.DIT: 6})
    engine.set_roles(frozenset({Role.DIT}))
    other = Bench(engine, bench.inputs, bench.steps, sources)
    kinds = [(other.use("a"),), (), (other.use("b", 0.7),)] * 2
    alone = [other.draw(*uses, seed=seed) for seed, uses in enumerate(kinds)]
    sizes: list[int] = []
    module = engine._pipeline.transformer
    forward = module.forward
    monkeypatch.setattr(
        module, "forward", lambda x, *args, **kwargs: sizes.append(len(x)) or forward(x, *args, **kwargs)
    )
    ready = threading.Barrier(6)

    def work(number: int) -> torch.Tensor:
        ready.wait(PATIENCE)
        return other.draw(*kinds[number], seed=number, share=True)

    with ThreadPoolExecutor(6) as pool:
        drawn = [each.result(PATIENCE) for each in [pool.submit(work, number) for number in range(6)]]
    for one, mine in zip(drawn, alone, strict=True):
        torch.testing.assert_close(one, mine, rtol=1e-3, atol=1e-3)
    assert max(sizes) > min(sizes)  # some were joined


def test_only_so_many_bytes_are_resident_and_the_one_used_longest_ago_goes(
    tmp_path: Path, inputs: dict[str, Any], steps: type
) -> None:
    state = lora(MODEL, 0)
    size = sum(tensor.nbytes for tensor in state.values())
    sources = {name: write(tmp_path / f"{name}.safetensors", lora(MODEL, seed)) for seed, name in enumerate("abc")}
    bench = Bench(dit(sources, 2 * size), inputs, steps, sources)
    first = bench.draw(bench.use("a"))
    bench.draw(bench.use("b"))
    bench.draw(bench.use("a"))
    bench.draw(bench.use("c"))
    assert bench.engine.resident_adapters == (("a", "transformer"), ("c", "transformer"))
    bench.draw(bench.use("b"))
    assert torch.equal(bench.draw(bench.use("a")), first)
    with pytest.raises(BadJob, match=f"take {3 * size} bytes together, and {2 * size} are allowed"):
        bench.draw(*map(bench.use, "abc"))
    assert bench.engine.capable()[Role.DIT].activation_bytes >= 2 * size


def test_adapters_of_a_job_that_waits_are_read_before_it_has_the_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, inputs: dict[str, Any], steps: type
) -> None:
    sources = {name: write(tmp_path / f"{name}.safetensors", lora(MODEL, seed)) for seed, name in enumerate("abc")}
    size = sum(tensor.nbytes for tensor in lora(MODEL, 0).values())
    bench = Bench(dit(sources, 2 * size), inputs, steps, sources)
    expected = {name: bench.draw(bench.use(name)) for name in "abc"}
    assert "a" not in dict(bench.engine.resident_adapters)
    reads: list[Path] = []
    read = bench.engine._adapters._reader.read
    monkeypatch.setattr(bench.engine._adapters._reader, "read", lambda path: reads.append(path) or read(path))

    def prepared(name: str) -> Any:
        return bench.engine.prepare(StageJob(Role.DIT, params(bench.use(name))), bench.inputs)

    first = prepared("a")
    assert [path.stem for path in reads] == ["a"]
    again = prepared("a")
    prepared("c")
    assert [path.stem for path in reads] == ["a"], "it is here already, or resident"
    assert torch.equal(latents(first(steps())), expected["a"])
    assert torch.equal(latents(again(steps())), expected["a"])
    assert [path.stem for path in reads] == ["a"]
    waiting = [prepared(name) for name in "bac"]
    assert torch.equal(latents(waiting[0](steps())), expected["b"])
    assert len(bench.engine._adapters._ahead) * size <= 2 * size


def test_an_adapter_that_cannot_be_read_ahead_fails_its_job_when_it_begins(
    tmp_path: Path, inputs: dict[str, Any], steps: type
) -> None:
    source = write(tmp_path / "a.safetensors", lora(MODEL, 0))
    bench = Bench(dit({"a": source}), inputs, steps, {"a": source})
    job = StageJob(Role.DIT, params(bench.use("a")))
    Path(source).unlink()
    waiting = bench.engine.prepare(job, bench.inputs)
    with pytest.raises(BadJob, match="cannot be read any more"):
        waiting(steps())


def test_roles_that_go_take_their_adapters_along(sources: dict[str, str], inputs: dict[str, Any], steps: type) -> None:
    bench = Bench(dit(sources), inputs, steps, sources)
    before = bench.draw(bench.use("a"))
    bench.engine.set_roles(frozenset({Role.DECODER}))
    assert bench.engine.resident_adapters == ()
    bench.engine.set_roles(frozenset({Role.DIT}))
    assert torch.equal(bench.draw(bench.use("a")), before)


def test_compiled_code_is_not_for_calls_with_an_adapter(sources: dict[str, str], bench: Bench) -> None:
    """Hooks, such as ours, are compiled away."""
    asked: list[Any] = []

    class Listening(Compiler):
        def instead(self, module: Any, arguments: Any) -> Any:
            asked.append(module)
            return module

    engine = DiffusersEngine(MODEL, compiler=Listening(), adapters=sources, adapter_bytes=ROOM)
    engine.set_roles(frozenset({Role.DIT}))
    for adapters, is_asked in (((bench.use("a"),), False), ((), True)):
        engine.run(StageJob(Role.DIT, params(*adapters), fast=True), bench.inputs, bench.steps())
        assert bool(asked) is is_asked


def test_a_file_that_changes_or_goes_after_the_start_is_told_to_the_client(
    tmp_path: Path, inputs: dict[str, Any], steps: type
) -> None:
    sources = {name: write(tmp_path / f"{name}.safetensors", lora(MODEL, seed)) for seed, name in enumerate("ab")}
    bench = Bench(dit(sources), inputs, steps, sources)
    write(Path(sources["a"]), lora(MODEL, 9))
    Path(sources["b"]).unlink()
    with pytest.raises(BadJob, match="The LoRA 'a' cannot be used: it has changed since the server was started") as one:
        bench.draw(bench.use("a"))
    with pytest.raises(BadJob, match="The LoRA 'b' cannot be used: it cannot be read any more") as other:
        bench.draw(bench.use("b"))
    assert str(tmp_path) not in f"{one.value}{other.value}"


def test_what_is_not_here_or_is_another_file_is_refused(bench: Bench) -> None:
    with pytest.raises(BadJob, match="There is no LoRA 'c' here; there are a, b"):
        bench.draw(AdapterUse("c", "00", 1.0))
    with pytest.raises(BadJob, match="The LoRA 'a' is another file here"):
        bench.draw(AdapterUse("a", "00", 1.0))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: you tried")]
)
def test_no_memory_for_an_adapter_is_that_jobs_failure_alone(
    sources: dict[str, str],
    inputs: dict[str, Any],
    steps: type,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    bench = Bench(dit(sources), inputs, steps, sources)

    def full(*_: Any) -> LowRank:
        raise error

    with monkeypatch.context() as scarce:
        scarce.setattr(LowRank, "to", full)
        with pytest.raises(OutOfMemory):
            bench.draw(bench.use("a"))
    assert bench.engine.resident_adapters == ()
    bench.draw(bench.use("a"))
    assert bench.engine.resident_adapters
