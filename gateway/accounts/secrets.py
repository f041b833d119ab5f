"""Keys as their holders have them, and what is kept of them."""

from __future__ import annotations

import hashlib
import hmac
import secrets

PREFIX = "sk-df-"
"""Tells secret scanners, and people, what it is."""


def new_secret() -> str:
    """256 random bits, in 49 characters."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(secret: bytes) -> bytes:
    """What is kept of ``secret``: SHA-256, 32 bytes.

    Slow hashes (argon2, scrypt) and salts make guessing costly where people choose secrets. 256 random bits are never
    guessed, whoever has the digest and however fast it is; and every request, wrong ones too, pays for one digest.
    """
    return hashlib.sha256(secret).digest()


def same(one: bytes, other: bytes) -> bool:
    """In a time that tells nothing of where they differ."""
    return hmac.compare_digest(one, other)
