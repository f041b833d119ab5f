"""The question before the weights are loaded: would the gateway let this server in? Blocks; no event loop runs yet.

Whoever does not answer is not waited for: stage servers may well be started before their gateway.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import zmq
from zmq.utils.monitor import parse_monitor_message

from stage_server.runtime.control import BadEndpoint, Curve
from wire.control_codec import MAX_TO_STAGE_BYTES, decode_to_stage, encode
from wire.dial import announced_mechanism
from wire.errors import WireError
from wire.to_gateway import Ask
from wire.to_stage import Fine, Refused

ANSWER_SECONDS = 3.0

HANGS_UP = "whoever is there hangs up"

_DENIED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL

log = logging.getLogger(__name__)


class Unwelcome(Exception):
    """The gateway would refuse this server; the text is for the operator."""


def ask_gateways(
    endpoints: Sequence[str], ask: Ask, curve: Curve | None, seconds: float = ANSWER_SECONDS
) -> tuple[Fine, ...]:
    """Ask all at once; those that said yes. Raises ``Unwelcome`` where every one refuses, or ``BadEndpoint``."""

    def answer(endpoint: str) -> Fine | str | None:
        try:
            return ask_gateway(endpoint, ask, curve, seconds)
        except Unwelcome as error:
            return str(error)

    with ThreadPoolExecutor(len(endpoints), "ask") as threads:
        answers = list(threads.map(answer, endpoints))
    refusals = [said for said in answers if isinstance(said, str)]
    if len(refusals) == len(answers):
        raise Unwelcome("; ".join(refusals))
    for text in refusals:
        log.warning("%s", text)
    return tuple(said for said in answers if isinstance(said, Fine))


def ask_gateway(endpoint: str, ask: Ask, curve: Curve | None, seconds: float = ANSWER_SECONDS) -> Fine | None:
    """What the gateway says; None where that is nothing for so many seconds, or it is older than the question.

    Raises ``Unwelcome`` or ``BadEndpoint``.
    """
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.IDENTITY, f"{ask.name}/{ask.incarnation}".encode())
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.IPV6, 1)
        dealer.setsockopt(zmq.MAXMSGSIZE, MAX_TO_STAGE_BYTES)
        if curve is not None:
            dealer.setsockopt(zmq.CURVE_SERVERKEY, curve.gateway_key.encode())
            dealer.setsockopt(zmq.CURVE_PUBLICKEY, curve.own.public.encode())
            dealer.setsockopt(zmq.CURVE_SECRETKEY, curve.own.secret.encode())
        with dealer.get_monitor_socket(_DENIED) as monitor:
            try:
                dealer.connect(endpoint)
                dealer.send(encode(ask))
                said = _said(dealer, monitor, endpoint, monotonic() + seconds)
            except zmq.ZMQError as error:
                raise BadEndpoint(f"{endpoint!r} is no address of a gateway: {error.strerror}") from error
            except (TimeoutError, WireError) as silence:
                log.warning("asking the gateway at %s: %s; loading all the same", endpoint, silence)
                return None
            finally:
                dealer.disable_monitor()
    if isinstance(said, str):
        raise Unwelcome(f"the gateway at {endpoint} refuses this server: {said}")
    return said


def _said(dealer: zmq.Socket[bytes], monitor: zmq.Socket[bytes], endpoint: str, until: float) -> Fine | str | None:
    """Yes, or why this server is refused; None of a gateway that is older than the question. Raises ``TimeoutError``
    where nobody says."""
    poller = zmq.Poller()
    poller.register(dealer, zmq.POLLIN)
    poller.register(monitor, zmq.POLLIN)
    silence = "no answer"
    while ready := dict(poller.poll(max(0, int((until - monotonic()) * 1000)))):
        if monitor in ready:
            event = parse_monitor_message(monitor.recv_multipart())
            if event["event"] == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                return "its CURVE public key is not registered there (key)"
            # A gateway with another key than the one expected hangs up too, and a proxy in front of none. That only one
            # of the two has keys is no event of its own where the gateway notices first.
            if silence != HANGS_UP and announced_mechanism(endpoint) not in (_mechanism(dealer), ""):
                return "one of the two has CURVE keys, the other has none (key)"
            silence = HANGS_UP
        if dealer in ready:
            match decode_to_stage(dealer.recv_multipart()[-1]):
                case Refused(code=code, message=message):
                    return f"{message} ({code})"
                case Fine() as fine:
                    return fine
                case _:  # ``SayHello``
                    return None
    raise TimeoutError(silence)


def _mechanism(socket: zmq.Socket[bytes]) -> str:
    return "CURVE" if socket.getsockopt(zmq.MECHANISM) == zmq.CURVE else "NULL"
