"""The seam between the HTTP API and the pipeline behind it. The API knows nothing else of the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from typing import Protocol

from wire.params import ImageParams, ModelInfo
from wire.record import record
from wire.types import Role

BACKGROUND = "~batches"
"""The tenant of work that everybody else goes before; no caller's, and behind callers' where shares are equal."""


@record(frozen=True, slots=True)
class ImageRequest:
    """A validated request for ``len(images)`` pictures that share prompt and parameters but for the seed."""

    request_id: str
    model: str
    """Served model id, aliases resolved."""
    images: tuple[ImageParams, ...]
    deadline_seconds: float
    """From now until the caller has given up."""
    tenant: str = ""
    priority: int = 0
    """Among the requests of one tenant, higher goes first."""
    exact: bool = True
    """The pictures must not depend on the company they are made in."""
    uploads: Mapping[str, bytes] = field(default_factory=dict)
    """Uploaded pictures as PNG: ``image``, further ones ``image_1`` …, and ``mask_image`` (grey, 255 = edit)."""
    traceparent: str = ""
    enhance: bool = False
    """The model's enhancer writes the prompt anew before it is encoded."""


@record(frozen=True, slots=True)
class Admitted:
    """The request was accepted: what goes wrong from now on goes wrong in mid-way."""

    predicted_seconds: float
    """Until the last picture."""


@record(frozen=True, slots=True)
class Progress:
    """``step`` of ``steps`` of an image is done."""

    image: int
    step: int
    steps: int


@record(frozen=True, slots=True)
class Partial:
    """An intermediate picture: what the denoiser took for the final one after some steps, encoded."""

    image: int
    index: int
    """Counts up from 0 for each image; some may be left out."""
    data: bytes


@record(frozen=True, slots=True)
class PromptRead:
    """What of a prompt the model read."""

    tokens: int = 0
    """Of the whole prompt, by the model's own tokenizer; 0: not known."""
    dropped: int = 0
    """Of these, past what the model reads."""
    revised: str = ""
    """What an enhancer made of it, of which the rest is then true; the prompt itself where nothing came of that. Empty
    where it was not asked for."""


UNCOUNTED = PromptRead()


@record(frozen=True, slots=True)
class Ready:
    """One of the pictures is finished; others may follow."""

    image: int
    data: bytes
    prompt: PromptRead = UNCOUNTED


@record(frozen=True, slots=True)
class Rewritten:
    """An enhancer has other words for the prompt, of which the pictures are made."""

    prompt: str


@record(frozen=True, slots=True)
class Took:
    """A stage job held a device that long: until it was done, or until its request was given up. Told once per job,
    whatever losses made it run again; what somebody else's failure cost is nobody's use."""

    role: str
    device_seconds: float


News = Admitted | Rewritten | Progress | Partial | Ready | Took
"""What a caller may hear of its request before it is over."""

Listener = Callable[[News], None]
"""Called on the event loop; must not block."""


def unheard(_: News) -> None:
    """The listener of callers that wait for the end."""


@record(frozen=True, slots=True)
class StageReport:
    """What one stage job of a finished request took, for people: ``x-…`` headers, the demo, traces."""

    role: str
    image: int | None
    """Index of the image; None when all images share the job."""
    server: str
    attempts: int
    queue_seconds: float
    fetch_seconds: float
    compute_seconds: float
    publish_seconds: float
    steps: int = 0


@record(frozen=True, slots=True)
class Finished:
    """Encoded pictures, in the order of ``ImageRequest.images``."""

    images: tuple[bytes, ...]
    stages: tuple[StageReport, ...]
    predicted_seconds: float = 0.0
    """What the scheduler foresaw at admission."""
    prompt: PromptRead = UNCOUNTED


@record(frozen=True, slots=True)
class Place:
    """Where a request under way stands at the moment it is asked about."""

    ahead: int | None
    """Requests for the same model that wait and are likely to be served before it; None for one that does not wait: a
    server has one of its jobs, or its pictures are on their way here.
    """
    seconds_left: float
    """Predicted, until its last picture."""


class ServiceError(Exception):
    """The request ends without a picture. The API translates each subclass once (``gateway.api.errors``)."""


class ModelNotFound(ServiceError):
    """No such model is served, now or before."""


class NoCapacity(ServiceError):
    """Rejected at admission, or no server held a needed role until the deadline: 503 with ``Retry-After``."""

    def __init__(self, message: str, *, retry_after_seconds: float, predicted_wait_seconds: float | None = None):
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.predicted_wait_seconds = predicted_wait_seconds


class DeadlineExceeded(ServiceError):
    """504."""


class UnsupportedRequest(ServiceError):
    """The model cannot do what the parameters ask: 400."""

    def __init__(self, message: str, *, param: str | None = None):
        super().__init__(message)
        self.param = param


class OutOfDeviceMemory(ServiceError):
    """The request does not fit any server: 500, not to be retried."""


class FaultyModel(ServiceError):
    """What the model makes is no picture, or not the one asked for: 500, not to be retried. The text is for clients."""


class ModerationBlocked(ServiceError):
    """The operator's moderation forbids the prompt or the picture: 400."""


class ModerationUnavailable(ServiceError):
    """Moderation gave no verdict, and nothing may pass without one: 503."""


class GenerationFailed(ServiceError):
    """All attempts failed: 500."""


class UnknownServer(ServiceError):
    """An operator named a stage server that is not here: 404."""


class NothingKnown(ServiceError):
    """An operator asked about a request that left no trace: 404."""


class OrderRefused(ServiceError):
    """An operator's order that would do harm: 409."""


class ImageService(Protocol):
    """Implemented by the dispatcher; by fakes in the API's tests."""

    def models(self) -> tuple[ModelInfo, ...]:
        """Models known to the gateway: those of every server that has registered since start, ready or not."""

    def ready(self) -> bool:
        """True when every role of some model is held by a live server."""

    def status(self) -> Mapping[str, object]:
        """For ``/readyz`` and people: per model, role → number of servers, and what is missing."""

    async def generate(self, request: ImageRequest, listener: Listener = unheard) -> Finished:
        """Run the request to its end. Cancelling the awaiting task cancels the work on every server.

        ``listener`` hears on the way how it goes; first of all ``Admitted``, unless the request fails before.

        Raises a ``ServiceError``.
        """

    def place(self, request_id: str) -> Place | None:
        """None for a request that is not under way: not admitted yet, over, or never seen.

        Worked out when asked (a fraction of a millisecond): ask at most once a second for each request.
        """


class OperatorService(Protocol):
    """What operators may see and order, as JSON. Servers are named as they call themselves (``--name``).

    Orders return the server as it is once the order has taken effect. They raise ``UnknownServer`` or ``OrderRefused``.
    """

    def servers(self) -> Sequence[Mapping[str, object]]: ...

    def why(self, request: str, server: str) -> Mapping[str, object]:
        """The latest decisions about a request or, without one, a server; about everything without either.

        Raises ``NothingKnown`` or ``UnknownServer``.
        """

    def plan(self) -> Mapping[str, object]:
        """What is asked of each role, the latest plan, and why roles move or do not."""

    def scaling(self) -> Mapping[str, object]:
        """How many servers each pool shall have, which shall go, and why."""

    async def pin(self, server: str, *, pinned: bool) -> Mapping[str, object]: ...

    async def assign(self, server: str, roles: Iterable[Role]) -> Mapping[str, object]:
        """Exactly these roles; the change is under way on return."""

    async def drain(self, server: str) -> Mapping[str, object]:
        """It gets no new work, and ends when what it has is done and handed over."""

    async def announce_loss(self, server: str, within: float) -> Mapping[str, object]:
        """Its machine goes in ``within`` seconds: it stops in time, and is replaced."""
