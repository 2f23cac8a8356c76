"""Signatures of what makes a worker run code or read files: a run's spec and its splits.

With `RQMR_SECRET` in its environment a driver signs them, and a worker refuses what isn't signed with the same secret.
A job's code is named in the spec by its content hash, so it is signed with it. Data (segments, outcomes) is not.

A signed value is one byte that no msgpack begins with, the HMAC-SHA256, and the value: so whoever has no secret can
read it too. The HMAC covers what the value is and of which run, so that none can stand in another's place.
"""

from __future__ import annotations

import hashlib
import hmac
import os

import msgspec

from rqmr.errors import SignatureError

VARIABLE = "RQMR_SECRET"
_SIGNED = b"\xc1"  # which msgpack never uses
_LENGTH = hashlib.sha256().digest_size
#: Whoever can read Redis can try secrets against a signature, at leisure.
_SHORTEST = 16


def sign(kind: str, run: str, slot: str, value: bytes) -> bytes:
    """Return the value as it is stored: signed, if there is a secret. `slot`: which one of its kind in the run.

    Raises:
        SignatureError: the secret is too short.
    """
    secret = _secret()
    return _SIGNED + _signature(secret, kind, run, slot, value) + value if secret else value


def verified(kind: str, run: str, slot: str, stored: bytes) -> bytes:
    """Return the value that was stored; without a secret, whoever has written it.

    Raises:
        SignatureError: it isn't signed with this secret, or was altered since; or the secret is too short.
    """
    is_signed = stored[:1] == _SIGNED
    told, value = (stored[1 : 1 + _LENGTH], stored[1 + _LENGTH :]) if is_signed else (b"", stored)
    secret = _secret()
    if secret and not is_signed:
        raise SignatureError(
            f"the {kind} of run {run} isn't signed; whoever starts runs needs the workers' {VARIABLE} in the "
            f"environment of rqmr"
        )
    if secret and not hmac.compare_digest(told, _signature(secret, kind, run, slot, value)):
        raise SignatureError(
            f"the {kind} of run {run} was altered, or signed with another secret; give rqmr and its workers the same "
            f"{VARIABLE}"
        )
    return value


def _signature(secret: bytes, kind: str, run: str, slot: str, value: bytes) -> bytes:
    # An array tells where each of its words ends, so no two messages are spelled alike.
    return hmac.digest(secret, msgspec.msgpack.encode(("rqmr", kind, run, slot)) + value, "sha256")


def _secret() -> bytes:
    """Return the secret, b"" for none: a file that it came from may end with a newline."""
    secret = os.environ.get(VARIABLE, "").strip()
    if secret and len(secret) < _SHORTEST:
        raise SignatureError(
            f"{VARIABLE} has {len(secret)} characters; it takes {_SHORTEST} at least, and best 64 that nobody chose: "
            f"python -c 'import secrets; print(secrets.token_hex())'"
        )
    return secret.encode(errors="surrogateescape")
