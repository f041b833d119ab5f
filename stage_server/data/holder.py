"""The socket that serves this process's outputs to whoever pulls them.

One thread and one ZeroMQ context of its own: a computing device never waits for it, nor it for the device. A sent
buffer is referenced by ZeroMQ until its last byte has left, so a released output's memory outlives its transfers.
"""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Collection

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from stage_server.data.desk import Desk, configure
from wire.security import Allow, CurveKeys, check_bind
from wire.transfer import Lookup

MAX_CONNECTIONS = 512
_ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_CLOSE_SECONDS = 5.0


class BindError(Exception):
    """The data socket cannot be bound; the text is for the operator."""


class Holder:
    """Serves ``lookup`` from construction until ``close``.

    ``endpoint`` is the bound address, with the port chosen for ``tcp://host:*`` filled in.
    """

    def __init__(
        self,
        bind: str,
        lookup: Lookup,
        *,
        keys: CurveKeys | None = None,
        allow: Allow | None = None,
        allow_plaintext: bool = False,
        max_connections: int = MAX_CONNECTIONS,
        identity: str = "",
        aliases: Collection[str] = (),
    ) -> None:
        """``identity``: name/incarnation of this server, by which others recognise it, and those with which it shares
        the socket as well: ``aliases``.

        With ``keys`` every connection is encrypted; with ``allow``, only public keys that it accepts get in.

        ``lookup`` and ``allow`` are called on the holder's thread. Raises ``BindError``.
        """
        if allow is not None and keys is None:
            raise BindError("an allow-list of public keys needs CURVE keys for the data socket")
        self._desk = Desk(lookup, identity, aliases)
        self.statistics = self._desk.statistics
        self._allow = allow
        self._max_connections = max_connections
        self._connections: set[int] = set()
        """File descriptors."""
        self._context = zmq.Context(io_threads=1)
        self._router = self._context.socket(zmq.ROUTER)
        self._zap = self._context.socket(zmq.ROUTER)
        self._monitor = self._router.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._stop, self._stopped = socket.socketpair()
        configure(self._router, keys)
        self._router.zap_domain = b"data"
        self._zap.bind(_ZAP_ENDPOINT)
        try:
            self.endpoint = self._bind(bind, keys, allow_plaintext)
        except BindError:
            self._release()
            raise
        self._thread = threading.Thread(target=self._loop, name="data-holder", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving; answers under way are dropped. Closing twice is harmless."""
        if self._stop.fileno() < 0:
            return
        self._stop.close()
        self._thread.join(_CLOSE_SECONDS)

    def _bind(self, bind: str, keys: CurveKeys | None, allow_plaintext: bool) -> str:
        try:
            check_bind(bind, keys, allow_plaintext=allow_plaintext)
            self._router.bind(bind)
        except ValueError as error:
            raise BindError(str(error)) from error
        except zmq.ZMQError as error:
            hint = "; choose another port, or * for any" if error.errno == errno.EADDRINUSE else ""
            raise BindError(
                f"the data socket cannot be bound to {bind}: {zmq.strerror(error.errno or 0)}{hint}"
            ) from error
        # ZeroMQ would report an IPv4 address in its IPv6 notation.
        port = self._router.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2]
        return bind.rpartition(":")[0] + ":" + port

    def _loop(self) -> None:
        poller = zmq.Poller()
        for source in (self._router, self._monitor, self._zap, self._stopped):
            poller.register(source, zmq.POLLIN)
        try:
            while self._stopped.fileno() not in (ready := dict(poller.poll())):
                if self._monitor in ready:
                    self._count()
                if self._zap in ready:
                    self._admit()
                if self._router in ready:
                    self._desk.answer_some(self._router)
        finally:
            self._release()

    def _count(self) -> None:
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._connections.add(event["value"])
            else:
                self._connections.discard(event["value"])

    def _admit(self) -> None:
        """Answer one ZAP request (RFC 27): may this peer connect?"""
        peer, empty, version, request_id, _domain, _address, _identity, mechanism, *credentials = (
            self._zap.recv_multipart()
        )
        self._count()  # this one included
        key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" else ""
        accepted = len(self._connections) <= self._max_connections and (self._allow is None or self._allow(key))
        status, text = (b"200", b"OK") if accepted else (b"400", b"not allowed")
        self.statistics.denied += not accepted
        self._zap.send_multipart([peer, empty, version, request_id, status, text, key.encode(), b""])

    def _release(self) -> None:
        self._stopped.close()
        self._stop.close()
        self._context.destroy(linger=0)
