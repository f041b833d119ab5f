"""Key pairs for tests of encrypted sockets."""

from __future__ import annotations

import zmq

from wire.security import CurveKeys


def generate_keys() -> CurveKeys:
    public, secret = zmq.curve_keypair()
    return CurveKeys(public.decode(), secret.decode())
