"""``HOST:PORT`` on the command line, the socket to listen on, and the address that others reach it by."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from synclib.errors import Invalid, Unavailable

_S3_HOST = "s3.amazonaws.com"


def parse_address(text: str, flag: str, port_min: int = 0) -> tuple[str, int]:
    """(host, port) from ``host:port`` or ``[v6]:port``; an empty host is all addresses."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not (port.isascii() and port.isdigit()) or not port_min <= int(port) < 65536:
        raise Invalid(f"{flag} {text!r} is no address", hint=f"use {flag} HOST:PORT, with brackets around IPv6")
    return host or "0.0.0.0", int(port)


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket that holds the address but does not listen yet: until it does, connections are refused."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise Invalid(f"cannot listen on {host}: {error}", hint="name an address of this machine") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise Invalid(
            f"cannot listen on {host} port {port}: {error.strerror}", hint="is another server running there?"
        ) from error
    return bound


def show_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def advertised(listen_host: str, store_url: str, endpoint: str | None) -> str:
    """The IP that others reach a server by which listens on ``listen_host``.

    Where that is one address, that one: nothing answers on others. Else the local end of the route to the store, and
    127.0.0.1 for a store on this machine.
    """
    listen = ipaddress.ip_address(listen_host)
    if not listen.is_unspecified:
        return str(listen)
    if not store_url.startswith("s3://"):
        return "127.0.0.1"
    parts = urlsplit(endpoint or f"https://{_S3_HOST}")
    try:
        return _route_to(parts.hostname or _S3_HOST, parts.port or 443)
    except OSError as error:
        raise Unavailable(
            f"there is no route to the store: {error}", hint="name the address with --advertise"
        ) from error


def check_ip(host: str, flag: str) -> str:
    """``host`` in the plain spelling of its IP address."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError as error:
        raise Invalid(f"{flag} {host!r} is no IP address", hint="a registration's key holds an IP address") from error


def _route_to(host: str, port: int) -> str:
    """This machine's address on the way to ``host``; a connected UDP socket sends nothing."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])
