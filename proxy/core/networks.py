"""Where backends may live. A registration is a wish of whoever can write to the store, so addresses are checked."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from synclib.errors import Invalid

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
LOOPBACK = ("127.0.0.0/8", "::1/128")
# Instance metadata lies here, whatever else is allowed: link-local, and EC2's IPv6 addresses inside fc00::/7.
_NEVER = (
    ipaddress.ip_network("169.254.0.0/16"),
    ipaddress.ip_network("fe80::/10"),
    ipaddress.ip_network("fd00:ec2::/32"),
    ipaddress.ip_network("0.0.0.0/8"),
)


def parse_networks(allow: Sequence[str], store_url: str) -> list[Network]:
    """The networks of ``--allow``; by default the private ones, and loopback where the store is a local directory."""
    if not allow:
        allow = (*PRIVATE, *LOOPBACK) if store_url.startswith("file://") else PRIVATE
    networks: list[Network] = []
    for text in allow:
        try:
            networks.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise Invalid(f"--allow {text!r} is no network: {error}", hint="write it as 10.0.0.0/8") from error
    return networks


def is_welcome(address: Address, networks: Sequence[Network]) -> bool:
    """Whether a backend may live at ``address``. Loopback needs a network of its own: 0.0.0.0/0 does not hold it."""
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        address = mapped
    if address.is_multicast or address.is_unspecified or any(address in network for network in _NEVER):
        return False
    return any(address in network and network.is_loopback == address.is_loopback for network in networks)
