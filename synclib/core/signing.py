"""Ed25519 signatures (RFC 8032): the one door to the library that makes and checks them.

A private key is kept as PEM (PKCS #8), which other tools read too; a public key is 64 hex digits on a line, so that a
first boot can read it with the standard library alone.
"""

from __future__ import annotations

import re

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from synclib.errors import Invalid

KEY_BYTES = 32
KEY_FILE_BYTES_MAX = 4096
_HEX = re.compile(r"[0-9a-f]{64}")


def private_pem(seed: bytes) -> bytes:
    """The private key that 32 random bytes are."""
    key = Ed25519PrivateKey.from_private_bytes(seed)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Signer:
    """Signs with one private key, given as PEM. Invalid where it is none of Ed25519, or is encrypted."""

    def __init__(self, pem: bytes) -> None:
        hint = "boxlink release key FILE makes one"
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise Invalid("this is no private key that can be read", hint=hint) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise Invalid("this is no Ed25519 key", hint=hint)
        self._key = key
        self.public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    def sign(self, data: bytes) -> str:
        """The signature, 128 hex digits."""
        return self._key.sign(data).hex()


def is_signed(data: bytes, public: str, signature: str) -> bool:
    """Whether ``signature`` (hex) is that of the key ``public`` (hex) over ``data``."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), data)
    except (ValueError, InvalidSignature):
        return False
    return True


def parse_public(data: bytes) -> str:
    """The public key that a ``.pub`` file holds: one line that is no comment. Invalid for anything else."""
    lines = [line.strip() for line in data[:KEY_FILE_BYTES_MAX].decode(errors="replace").splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if len(keys) != 1 or not _HEX.fullmatch(keys[0]):
        raise Invalid(
            "this is no public key", hint="it is one line of 64 hex digits; boxlink release key FILE makes one"
        )
    return keys[0]
