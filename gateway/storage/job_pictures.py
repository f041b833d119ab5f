"""Pictures of jobs: what a job was sent, until it ends; what it made, until it is deleted. They make room for nothing.

Whether they may be kept is decided when the job is accepted: it counts for what it may come to take.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

from gateway.storage.objects import Objects
from gateway.storage.space import Space

INPUTS, OUTPUTS = "jobs/in", "jobs/out"

ORPHAN_SECONDS = 3600.0
"""Pictures that no job knows for that long were left by an attempt or a request that died."""

SWEPT_AT_ONCE = 500

_NAME = re.compile(r"job_([0-9a-f]{32})_\d{1,2}\.(png|jpeg|webp)", re.ASCII)

Known = Callable[[Collection[str], Collection[str]], Awaitable[tuple[set[str], set[str]]]]
"""Which of these ids are unfinished jobs', and which of these tokens any job's."""


class JobPictures:
    """Every method raises ``StoreError``."""

    def __init__(self, objects: Objects, space: Space, clock: Callable[[], float] = time.time) -> None:
        self._objects = objects
        self._space = space
        self._clock = clock
        self._counted: Counter[str] = Counter()
        self._promised: dict[str, tuple[str, int]] = {}
        """Job → tenant and bytes."""
        self._kept: set[str] = set()

    def promise(self, job_id: str, tenant: str, nbytes: int) -> None:
        """To a job that is about to be accepted. Raises ``StoreFull``."""
        self._space.check(tenant, nbytes)
        self._promised[job_id] = tenant, nbytes
        self._note()

    def keep(self, job_id: str) -> None:
        """The job is in the database: it counts there from the next ``recount`` on."""
        self._kept.add(job_id)

    def withdraw(self, job_id: str) -> None:
        self._promised.pop(job_id, None)
        self._note()

    async def recount(self, held: Callable[[], Awaitable[Mapping[str, int]]]) -> None:
        """``held``: by tenant, what all jobs in the database take, those of other gateways too."""
        kept = set(self._kept)  # others may be promised or kept while we wait: whether they were counted is not known
        self._counted = Counter(await held())
        for job_id in kept:
            self._promised.pop(job_id, None)
        self._kept -= kept
        self._note()

    def _note(self) -> None:
        self._space.jobs = self._counted.copy()
        for tenant, nbytes in self._promised.values():
            self._space.jobs[tenant] += nbytes

    async def put_inputs(self, job_id: str, pictures: Mapping[str, bytes]) -> None:
        for name, picture in pictures.items():
            await self._objects.put(_input(job_id, name), picture)

    async def inputs(self, job_id: str, names: Iterable[str]) -> dict[str, bytes]:
        """By name; without those that are gone."""
        found = {name: await self._objects.get(_input(job_id, name)) for name in names}
        return {name: picture for name, picture in found.items() if picture is not None}

    async def put_outputs(self, token: str, pictures: Sequence[bytes], extension: str) -> list[str]:
        """Their names, in which their urls end. ``token`` is of the attempt, and nobody's else."""
        names = [f"job_{token}_{index}.{extension}" for index in range(len(pictures))]
        for name, picture in zip(names, pictures, strict=True):
            await self._objects.put(_output(name), picture)
        return names

    async def output(self, name: str) -> bytes | None:
        return await self._objects.get(_output(name)) if is_name(name) else None

    async def drop_inputs(self, job_id: str, names: Iterable[str]) -> None:
        await self._objects.discard(_input(job_id, name) for name in names)

    async def drop_outputs(self, names: Iterable[str]) -> None:
        await self._objects.discard(map(_output, names))

    async def sweep(self, known: Known) -> None:
        """Delete what belongs to no job. ``known`` may raise, which ends it."""
        stale = self._clock() - ORPHAN_SECONDS
        old = [
            each.key for kind in (INPUTS, OUTPUTS) for each in await self._objects.list(kind) if each.modified < stale
        ]
        for start in range(0, len(old), SWEPT_AT_ONCE):
            keys = {key: _belongs_to(key) for key in old[start : start + SWEPT_AT_ONCE]}
            jobs, tokens = await known(set(keys.values()), set(keys.values()))
            await self._objects.discard(key for key, owner in keys.items() if owner not in jobs | tokens)


def is_name(name: str) -> bool:
    """Whether a url that ends in ``name`` leads to the picture of a job."""
    return _NAME.fullmatch(name) is not None


def _input(job_id: str, name: str) -> str:
    return f"{INPUTS}/{job_id}.{name}"


def _output(name: str) -> str:
    return f"{OUTPUTS}/{name}"


def _belongs_to(key: str) -> str:
    """The job's id or the attempt's token."""
    kind, _, name = key.rpartition("/")
    match = _NAME.fullmatch(name)
    return match[1] if match and kind == OUTPUTS else name.partition(".")[0]
