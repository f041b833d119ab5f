"""The data plane's protocol without its sockets: how one bundle moves from its holder to a consumer.

The consumer asks for the bundle, learns from its header how many bytes follow, reserves them, and pulls chunks, a few
at a time; the first of them come with the header, unasked. Each answer is one message of a control frame and a raw
frame. The holder keeps no state between requests. A consumer, with threads or asyncio alike::

    fetch = Fetch(handle, transfer=next(counter))
    await send(fetch.request())
    while fetch.state is not State.COMPLETE:
        answer, body = decode_answer(await receive())  # demultiplex by answer.transfer
        for request in fetch.feed(answer, body):
            await send(request)
        if fetch.state is State.OFFERED:
            for request in fetch.accept(allocate(fetch.nbytes)):
                await send(request)
    values = unpack(fetch.bundle)

and a holder::

    for answer in serve(frames, store.get):
        await send(peer, answer)

Deadlines, silence and lost connections are the socket's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from enum import Enum, auto

import msgspec
import xxhash

from wire.bundle import LIMITS, Bundle, Limits, payload_bytes
from wire.control_codec import Buffer, check_size, decode
from wire.errors import FrameTooLarge, InputLost, Loss, MalformedFrame, ProtocolMismatch, WireError
from wire.types import Handle
from wire.version import PROTOCOL, check_protocol

MAX_CHUNK_BYTES = 4 << 20
"""Largest chunk that a holder sends; none is sent unasked."""

CHUNK_BYTES = 1 << 20
"""What a consumer asks for at a time. Larger frames are slower: each one makes ZeroMQ map fresh memory."""

WINDOW = 8
"""Chunks that one transfer has under way."""

MAX_AHEAD = 8
"""Chunks, at most, that a holder sends unasked."""

MAX_OPENING_HEADER = 2048
"""Bytes of a bundle's header, at most, that fit into a control frame; a larger one is a frame of its own."""

MAX_FIELDS_BYTES = 4096
"""Largest control frame on this plane; as holders receive nothing else, also their ``ZMQ_MAXMSGSIZE``."""

MAX_ANSWER_BYTES = max(MAX_CHUNK_BYTES, LIMITS.header_bytes)
"""``ZMQ_MAXMSGSIZE`` of consumers."""

MAX_WAIT_MS = 10_000
"""For which a holder keeps a ``Get`` for what is not there yet, at most."""

Frames = Sequence[Buffer]
Lookup = Callable[[Handle], Bundle | None]
"""What a holder serves; called on its socket's thread, so it must not block."""


class _Fields(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, kw_only=True):
    transfer: int
    """Chosen by the consumer, repeated in every answer."""


class Get(_Fields, frozen=True, kw_only=True):
    """What is under this handle? Answered by ``Opening`` or ``Header``, ``Missing`` or ``Refused``."""

    handle: Handle
    protocol: tuple[int, int]
    chunk: int = 0
    """Bytes of the chunks that may come unasked; 0: none may."""
    ahead: int = 0
    """How many of them."""
    wait_ms: int = 0
    """It may not be there yet: for so long the answer waits for it. Holders before protocol 1.5 answer at once."""


class Pull(_Fields, frozen=True, kw_only=True):
    """Bytes of the payload, answered by ``Chunk``, ``Missing`` or ``Refused``."""

    handle: Handle
    offset: int
    length: int


class Probe(_Fields, frozen=True, kw_only=True):
    """Is ``server`` (name/incarnation) here? Answered by ``Here``."""

    server: str


class Here(_Fields, frozen=True, kw_only=True):
    name: str
    """Of whoever answers."""
    expected: bool
    """It is the one asked for."""


class Opening(_Fields, frozen=True, kw_only=True):
    """A second frame holds the first chunk; those that begin before ``ahead`` follow, each as a ``Chunk``."""

    header: bytes
    """The bundle's."""
    ahead: int
    """Bytes of the payload."""
    checksum: int
    """Of the first chunk."""


class Header(_Fields, frozen=True, kw_only=True):
    """A second frame holds the bundle's header; nothing comes unasked."""


class Chunk(_Fields, frozen=True, kw_only=True):
    """A second frame holds the bytes, with this XXH3-64 checksum."""

    offset: int
    checksum: int


class Missing(_Fields, frozen=True, kw_only=True):
    """Released, or never here."""


class Refused(_Fields, frozen=True, kw_only=True):
    message: str


Request = Get | Pull | Probe
Answer = Opening | Header | Chunk | Missing | Refused | Here

_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answer_decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def probe(transfer: int, server: str) -> list[Buffer]:
    """Ask whether ``server`` is there."""
    return [_encoder.encode(Probe(transfer=transfer, server=server))]


def recognised(answer: Answer) -> str:
    """Why the answer to a ``Probe`` is not that of the server asked for; empty if it is."""
    if not isinstance(answer, Here):
        return "it does not answer as a stage server does"
    return "" if answer.expected else f"another server answers there: {answer.name!r}"


def _keep_none(_: Get) -> bool:
    return False


def serve(
    frames: Frames,
    lookup: Lookup,
    identity: str = "",
    aliases: Collection[str] = (),
    keep: Callable[[Get], bool] = _keep_none,
) -> Iterator[list[Buffer]]:
    """The messages that answer one request; ``identity`` is who does, name/incarnation, and so are its ``aliases``.

    A request that waits for what is not there yet is given to ``keep``, and not answered if that takes it.

    Raises ``WireError``, before the first of them, where the request cannot be read, so nobody can be answered.
    """
    if len(frames) != 1:
        raise MalformedFrame(f"a data request has one frame, not {len(frames)}")
    request = decode(_request_decoder.decode, frames[0], MAX_FIELDS_BYTES, "data request")
    if isinstance(request, Probe):
        name = identity.rpartition("/")[0]  # the incarnation would open the server's control connection to others
        expected = request.server == identity or request.server in aliases
        return iter([[_encoder.encode(Here(transfer=request.transfer, name=name, expected=expected))]])
    bundle = lookup(request.handle)
    if bundle is None and isinstance(request, Get) and request.wait_ms > 0 and keep(request):
        return iter(())
    if bundle is None:
        return iter([[_encoder.encode(Missing(transfer=request.transfer))]])
    match request:
        case Get():
            return _offer(request, bundle)
        case Pull():
            return iter([_cut(request, bundle)])


def _offer(request: Get, bundle: Bundle) -> Iterator[list[Buffer]]:
    transfer = request.transfer
    try:
        check_protocol(request.protocol)
    except ProtocolMismatch as error:
        yield [_encoder.encode(Refused(transfer=transfer, message=str(error)))]
        return
    ahead = _ahead(request, bundle)
    if not ahead:
        yield [_encoder.encode(Header(transfer=transfer)), bundle.header]
        return
    first, *others = (bundle.view(at, min(request.chunk, ahead - at)) for at in range(0, ahead, request.chunk))
    opening = Opening(transfer=transfer, header=bundle.header, ahead=ahead, checksum=xxhash.xxh3_64_intdigest(first))
    yield [_encoder.encode(opening), first]
    for number, body in enumerate(others, 1):
        yield _chunk(transfer, number * request.chunk, body)


def _ahead(request: Get, bundle: Bundle) -> int:
    """Bytes of the payload to send unasked: whole chunks, or all of it."""
    chunk = request.chunk
    if not 0 < chunk <= MAX_CHUNK_BYTES or len(bundle.header) > MAX_OPENING_HEADER:
        return 0
    return max(0, min(bundle.nbytes, chunk * min(request.ahead, MAX_AHEAD)))


def _cut(request: Pull, bundle: Bundle) -> list[Buffer]:
    first, length = request.offset, request.length
    if first < 0 or not 0 < length <= MAX_CHUNK_BYTES or first + length > bundle.nbytes:
        message = (
            f"{length} bytes from {first}: a chunk has 1 to {MAX_CHUNK_BYTES} of the payload's {bundle.nbytes} bytes"
        )
        return [_encoder.encode(Refused(transfer=request.transfer, message=message))]
    return _chunk(request.transfer, first, bundle.view(first, length))


def _chunk(transfer: int, offset: int, body: memoryview) -> list[Buffer]:
    fields = Chunk(transfer=transfer, offset=offset, checksum=xxhash.xxh3_64_intdigest(body))
    return [_encoder.encode(fields), body]


def decode_answer(frames: Frames) -> tuple[Answer, Buffer]:
    """One message from a holder: its fields and its second frame, empty where it has none. Raises ``WireError``."""
    if not 1 <= len(frames) <= 2:
        raise MalformedFrame(f"a data answer has one or two frames, not {len(frames)}")
    answer = decode(_answer_decoder.decode, frames[0], MAX_FIELDS_BYTES, "data answer")
    return answer, frames[1] if len(frames) == 2 else b""


class State(Enum):
    ASKED = auto()
    OFFERED = auto()
    """``nbytes`` is known: call ``accept`` before the next answer is fed."""
    PULLING = auto()
    COMPLETE = auto()
    """``bundle`` is there; whatever still arrives is ignored."""


class Fetch:
    """The consumer's side of one transfer. Every failure is an ``InputLost``, after which it must not be used."""

    def __init__(
        self,
        handle: Handle,
        transfer: int,
        *,
        limits: Limits = LIMITS,
        chunk_bytes: int = CHUNK_BYTES,
        window: int = WINDOW,
        wait_ms: int = 0,
    ) -> None:
        """``wait_ms``: it may not be there yet, and the holder is to wait for it so long."""
        self.handle = handle
        self.transfer = transfer
        self.state = State.ASKED
        self.nbytes = 0
        """Size of the payload, from ``OFFERED`` on."""
        self._limits = limits
        self._wait_ms = min(wait_ms, MAX_WAIT_MS)
        self._chunk_bytes = chunk_bytes
        self._window = window
        self._header = b""
        self._payload = memoryview(b"")
        self._first: tuple[Chunk, Buffer] | None = None
        """The chunk that came with the header, until its place is known."""
        self._next = 0
        self._under_way: dict[int, int] = {}
        """Offset → times that it arrived damaged."""

    @property
    def is_ahead(self) -> bool:
        """Its holder may have to wait for it, and nothing of it has come."""
        return self._wait_ms > 0 and self.state is State.ASKED

    def request(self) -> list[Buffer]:
        """The first message."""
        chunk, ahead = self._chunk_bytes, self._window
        get = Get(
            transfer=self.transfer,
            handle=self.handle,
            protocol=PROTOCOL,
            chunk=chunk,
            ahead=ahead,
            wait_ms=self._wait_ms,
        )
        return [_encoder.encode(get)]

    def feed(self, answer: Answer, body: Buffer) -> list[list[Buffer]]:
        """Take one answer; the messages to send now. Answers to other transfers are ignored."""
        if answer.transfer != self.transfer or self.state is State.COMPLETE:
            return []
        try:
            return self._feed(answer, body)
        except FrameTooLarge as error:
            raise InputLost(self.handle, Loss.TOO_LARGE, str(error)) from error
        except WireError as error:
            raise InputLost(self.handle, Loss.MALFORMED, str(error)) from error

    def accept(self, payload: memoryview) -> list[list[Buffer]]:
        """Pull into ``payload``: ``nbytes`` writable bytes that belong to this transfer until it ends."""
        if self.state is not State.OFFERED:
            raise RuntimeError(f"accept() in state {self.state.name}")
        if payload.nbytes != self.nbytes or payload.readonly or not payload.c_contiguous:
            raise ValueError(f"the payload needs {self.nbytes} writable, contiguous bytes")
        self._payload = payload.cast("B") if payload.nbytes else payload
        self.state = State.PULLING
        if self._first is None:
            return self._advance()
        (chunk, body), self._first = self._first, None
        return self._received(chunk, memoryview(body))

    @property
    def bundle(self) -> Bundle:
        """What was fetched, in state ``COMPLETE``."""
        if self.state is not State.COMPLETE:
            raise RuntimeError(f"no bundle in state {self.state.name}")
        return Bundle(self._header, self.nbytes, ((0, self._payload),) if self.nbytes else ())

    def _feed(self, answer: Answer, body: Buffer) -> list[list[Buffer]]:
        match answer:
            case Opening():
                self._opened(answer, body)
                return []
            case Header():
                self._offered(body)
                return []
            case Chunk():
                return self._received(answer, memoryview(body))
            case Missing():
                raise InputLost(self.handle, Loss.MISSING)
            case Refused(message=message):
                raise InputLost(self.handle, Loss.REFUSED, message)
            case Here():
                raise MalformedFrame("the answer to another question")

    def _opened(self, opening: Opening, body: Buffer) -> None:
        if self.state is not State.ASKED:
            return
        self._offered(opening.header)
        ahead, chunk = opening.ahead, self._chunk_bytes
        is_whole = ahead == self.nbytes or ahead % chunk == 0
        if not 0 < ahead <= min(self.nbytes, self._window * chunk) or not is_whole:
            raise MalformedFrame(f"{ahead} of {self.nbytes} bytes are said to come unasked, in chunks of {chunk}")
        self._first = Chunk(transfer=self.transfer, offset=0, checksum=opening.checksum), body
        self._under_way = dict.fromkeys(range(0, ahead, chunk), 0)
        self._next = ahead

    def _offered(self, header: Buffer) -> None:
        if self.state is State.ASKED:
            check_size(header, self._limits.header_bytes, "bundle header")
            self._header = bytes(header)
            self.nbytes = payload_bytes(self._header, self._limits)
            self.state = State.OFFERED

    def _received(self, chunk: Chunk, body: memoryview) -> list[list[Buffer]]:
        first = chunk.offset
        if first not in self._under_way:
            self._check_was_asked(first)
            return []
        length = self._length(first)
        if body.nbytes != length:
            raise MalformedFrame(f"the chunk at {first} has {body.nbytes} bytes instead of {length}")
        if xxhash.xxh3_64_intdigest(body) != chunk.checksum:
            return [self._pull_again(first)]
        self._payload[first : first + length] = body
        del self._under_way[first]
        return self._advance()

    def _check_was_asked(self, first: int) -> None:
        """A second copy of a chunk is harmless; one that was never asked for is a confused holder's."""
        if not 0 <= first < self._next or first % self._chunk_bytes:
            raise MalformedFrame(f"a chunk at {first}, which was not asked for")

    def _pull_again(self, first: int) -> list[Buffer]:
        if self._under_way[first]:
            raise MalformedFrame(f"the chunk at {first} arrived twice with a checksum that does not match")
        self._under_way[first] += 1
        return self._pull(first)

    def _advance(self) -> list[list[Buffer]]:
        pulls = []
        while self._next < self.nbytes and len(self._under_way) < self._window:
            self._under_way[self._next] = 0
            pulls.append(self._pull(self._next))
            self._next += self._length(self._next)
        if not self._under_way:
            self.state = State.COMPLETE
        return pulls

    def _pull(self, first: int) -> list[Buffer]:
        pull = Pull(transfer=self.transfer, handle=self.handle, offset=first, length=self._length(first))
        return [_encoder.encode(pull)]

    def _length(self, first: int) -> int:
        return min(self._chunk_bytes, self.nbytes - first)
