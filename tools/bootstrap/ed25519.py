"""Checking an Ed25519 signature in plain Python (RFC 8032, section 5.1.7).

Some milliseconds for one signature, which is all that a first boot checks. Nothing here is secret, so nothing need take
the same time for all values. The check is the strict one: S below the group's order, points that decode, and the
equation without the cofactor, as most libraries have it.
"""

from __future__ import annotations

import hashlib

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, P) % P
_ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)

Point = tuple[int, int, int, int]  # extended homogeneous coordinates (X, Y, Z, T), x = X/Z, y = Y/Z, xy = T/Z

_IDENTITY: Point = (0, 1, 1, 0)


def is_signed(data: bytes, public: bytes, signature: bytes) -> bool:
    """Whether ``signature`` (64 bytes) is that of the key ``public`` (32 bytes) over ``data``."""
    if len(public) != 32 or len(signature) != 64:
        return False
    key, point = _decode(public), _decode(signature[:32])
    scalar = int.from_bytes(signature[32:], "little")
    if key is None or point is None or scalar >= L:
        return False
    digest = hashlib.sha512(signature[:32] + public + data).digest()
    challenge = int.from_bytes(digest, "little") % L
    return _is_same(_times(scalar, _BASE), _add(point, _times(challenge, key)))


def _add(first: Point, second: Point) -> Point:
    """RFC 8032, section 5.1.4."""
    a = (first[1] - first[0]) * (second[1] - second[0]) % P
    b = (first[1] + first[0]) * (second[1] + second[0]) % P
    c = 2 * first[3] * second[3] * _D % P
    d = 2 * first[2] * second[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def _times(scalar: int, point: Point) -> Point:
    found = _IDENTITY
    while scalar:
        if scalar & 1:
            found = _add(found, point)
        point = _add(point, point)
        scalar >>= 1
    return found


def _is_same(first: Point, second: Point) -> bool:
    return (first[0] * second[2] - second[0] * first[2]) % P == 0 and (
        first[1] * second[2] - second[1] * first[2]
    ) % P == 0


def _decode(data: bytes) -> Point | None:
    """RFC 8032, section 5.1.3; None for bytes that are no point."""
    number = int.from_bytes(data, "little")
    sign, y = number >> 255, number & (1 << 255) - 1
    if y >= P:
        return None
    x = _x_of(y, sign)
    return None if x is None else (x, y, 1, x * y % P)


def _x_of(y: int, sign: int) -> int | None:
    square = (y * y - 1) * pow(_D * y * y + 1, -1, P) % P
    if square == 0:
        return None if sign else 0
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * _ROOT_OF_MINUS_ONE % P
    if (x * x - square) % P:
        return None
    return P - x if x & 1 != sign else x


def _base() -> Point:
    y = 4 * pow(5, -1, P) % P
    x = _x_of(y, 0)
    assert x is not None
    return x, y, 1, x * y % P


_BASE = _base()
