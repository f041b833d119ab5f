"""Compiled doubles of denoisers, for calls whose result need not be that of a run alone to the bit.

torch compiles when code is called with shapes that it has not seen, and that takes minutes. So nobody waits for it
here: a call of new shapes is computed as it is written, and its arguments go to a thread that compiles for them. What
that gives is held against the result as it is written, and calls of these shapes go there from then on. Repeated blocks
are compiled one by one, so that the code of the first is that of all. torch keeps compiled code on disk
(``TORCHINDUCTOR_CACHE_DIR``).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from threading import Condition, Thread
from time import perf_counter
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch

from stage_server.engine.base import LoadError
from stage_server.engine.joining import Arguments
from stage_server.engine.step_cache import own_tree

MOST_SHAPES = 1024
"""Of one module, each length of a prompt being one; calls of further ones are computed as they are written."""

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}
_ROUGH = 0.05
"""Of narrower types. Distance to the result as it is written, in lengths of that."""

_log = logging.getLogger(__name__)


class Compiler:
    """Of one engine. ``instead`` may be called from any thread, and returns at once."""

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """``backend``: one of torch's, by name, or a function like them."""
        self._backend = backend
        self._doubles: WeakKeyDictionary[torch.nn.Module, torch.nn.Module] = WeakKeyDictionary()
        self._known: WeakKeyDictionary[torch.nn.Module, dict[Hashable, bool]] = WeakKeyDictionary()
        """Shapes that were seen → whether they are compiled."""
        self._waiting: deque[tuple[torch.nn.Module, Hashable, Arguments]] = deque()
        self._changed = Condition()
        self._thread: Thread | None = None
        self._is_closed = False

    def take(self, module: torch.nn.Module) -> None:
        """From now on calls of it may be compiled."""
        self._known[module] = {}

    def instead(self, module: Any, arguments: Arguments) -> Any:
        """What computes a call with these arguments: ``module`` itself, or its compiled double."""
        known = self._known.get(module)
        if known is None:
            return module
        shapes = arguments.signature()
        is_compiled = known.get(shapes)
        if is_compiled is None and len(known) < MOST_SHAPES:
            self._ask_for(module, shapes, arguments)
        return self._doubles[module] if is_compiled else module

    def close(self) -> None:
        """What is being compiled cannot be stopped; nothing else is begun."""
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def wait_until_done(self, seconds: float) -> bool:
        """For tests and benchmarks: nothing waits or is being compiled."""
        with self._changed:
            return self._changed.wait_for(lambda: self._thread is None, seconds)

    def _ask_for(self, module: torch.nn.Module, shapes: Hashable, arguments: Arguments) -> None:
        with self._changed:
            known = self._known[module]
            if self._is_closed or shapes in known:
                return
            known[shapes] = False
            self._waiting.append((module, shapes, _copied(arguments)))
            if self._thread is None:
                self._thread = Thread(target=self._run, name="compiler", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._thread = None
                    self._changed.notify_all()
                    return
                module, shapes, arguments = self._waiting.popleft()
            try:
                self._known[module][shapes] = self._compile(module, arguments)
            except Exception as error:  # whatever a compiler raises: requests go on as the code is written
                _log.warning("%s is not compiled for these shapes: %s", type(module).__name__, _said(error))
            del module, arguments  # else they stay while the next one is awaited

    def _compile(self, module: torch.nn.Module, arguments: Arguments) -> bool:
        double = self._doubles.get(module)
        if double is None:
            double = self._doubles[module] = _compiled(own_tree(module), self._backend)
        began = perf_counter()
        with torch.no_grad():  # as jobs call it: code is compiled for one or the other
            result = double(*arguments.args, **arguments.kwargs)
            seconds = perf_counter() - began
            expected = module(*arguments.args, **arguments.kwargs)
        off, allowed = distance(result, expected)
        name = type(module).__name__
        if not off <= allowed:
            _log.warning("%s compiled is off by %.2g, more than %.2g: it is not used", name, off, allowed)
            return False
        _log.info("%s is compiled for another shape in %.1f s, off by %.2g: fast requests use it", name, seconds, off)
        return True


def refuse_missing_compiler(device: torch.device) -> None:
    """Raises ``LoadError`` with what is missing and what would be right."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton  # here: it looks for devices

        if not has_triton():
            raise LoadError("--compile needs the package triton on a CUDA device; pip install triton, or leave it out")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler  # here: it takes a second

    try:
        get_cpp_compiler()
    except Exception as error:  # its own kinds
        raise LoadError(
            "--compile needs a C++ compiler on a processor, and there is none: "
            "apt-get install g++ (or name one in the variable CXX), or leave it out"
        ) from error


def distance(result: Any, expected: Any) -> tuple[float, float]:
    """Of two results, in lengths of the expected one, and what is allowed."""
    ours, theirs = list(_tensors(result)), list(_tensors(expected))
    if [each.shape for each in ours] != [each.shape for each in theirs] or not theirs:
        return float("inf"), 0.0
    allowed = min(TOLERANCE.get(each.dtype, _ROUGH) for each in theirs)
    pairs = [(one.double(), other.double()) for one, other in zip(ours, theirs, strict=True)]
    length = max(float(other.norm()) for _, other in pairs)
    return max(float((one - other).norm()) for one, other in pairs) / max(length, 1e-30), allowed


def _compiled(tree: Any, backend: str | Callable[..., Any]) -> torch.nn.Module:
    if getattr(tree, "_repeated_blocks", None):
        tree.compile_repeated_blocks(backend=backend)
    else:
        tree.compile(backend=backend)
    return cast(torch.nn.Module, tree)


def _copied(arguments: Arguments) -> Arguments:
    """Of a job that goes on, and may write to them."""
    return Arguments(
        tuple(_copy(value) for value in arguments.args),
        {name: _copy(value) for name, value in arguments.kwargs.items()},
    )


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, list | tuple):
        return type(value)(_copy(each) for each in value)
    return {name: _copy(each) for name, each in value.items()} if isinstance(value, dict) else value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _said(error: Exception) -> str:
    """On one line, and not all of it: compilers quote the code."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
