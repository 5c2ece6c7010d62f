"""HOST:PORT, the socket that listens there and nowhere else, and which of our own addresses leads there."""

from __future__ import annotations

import array
import errno
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from eplb_cli.errors import UsageError, WorkerError

MAX_PORT = 65535
_BACKLOG = 4096
_SIOCGIFCONF = 0x8912
_IFREQ = struct.Struct("16sHH4s16x")
"""The kernel's `struct ifreq` on 64 bits with an IPv4 address: name, family, port, address."""
_MAX_INTERFACES = 4096
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_IPV6 = Path("/proc/net/if_inet6")


class Endpoint(NamedTuple):
    """Where host 0 listens: a name or an address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_endpoint(text: str) -> Endpoint:
    """HOST:PORT, or [IPV6]:PORT.

    Raises:
        UsageError: EP001, it is neither.
    """
    host, colon, port = text.strip().rpartition(":")
    is_in_brackets = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if is_in_brackets else host
    is_port = port.isascii() and port.isdigit() and 0 < int(port) <= MAX_PORT
    if not (colon and bare and is_port) or (":" in bare and not is_in_brackets) or "/" in bare:
        hint = "an address of host 0 that the others reach, and a free port, as in 10.0.0.1:29400"
        raise UsageError("EP001", f"--rdzv-endpoint {text!r} is not HOST:PORT", hint)
    return Endpoint(bare, int(port))


def is_address(host: str) -> bool:
    """Whether it is an address itself, of which no name server has to know."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def addresses_of(endpoint: Endpoint) -> list[tuple[socket.AddressFamily, str]]:
    """The addresses of an endpoint, in the order in which the system prefers them.

    Raises:
        WorkerError: EP407, its name is not known here.
    """
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        problem = f"--rdzv-endpoint {endpoint}: {endpoint.host} is not known here: {_reason(error)}"
        raise WorkerError("EP407", problem, "give the address itself, as in 10.0.0.1:29400") from error
    return [(family, str(address[0])) for family, _, _, _, address in found]


def listen(endpoint: Endpoint) -> socket.socket:
    """A socket that listens on exactly the address of an endpoint; port 0 is any that is free.

    Raises:
        UsageError: EP001, that would be every address of this host.
        WorkerError: EP407, the address is not one of this host, or one that only this host has; the port is
            not free.
    """
    family, address = addresses_of(endpoint)[0]
    known = ipaddress.ip_address(address.partition("%")[0])
    if known.is_loopback and endpoint.host not in {address, "localhost"}:  # as Debian's /etc/hosts has it
        problem = f"{endpoint.host} is {address} on host 0, which no other host reaches"
        hint = "give all hosts an address of host 0, as in 10.0.0.1:29400"
        raise WorkerError("EP407", f"--rdzv-endpoint {endpoint}: {problem}", hint)
    if known.is_unspecified:
        problem = f"--rdzv-endpoint {endpoint} is every address of host 0"
        raise UsageError(
            "EP001", problem, "name the one that the other hosts reach: nothing else is listened on"
        )
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, endpoint.port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise _not_listening(endpoint, error) from error
    return listening


def _not_listening(endpoint: Endpoint, error: OSError) -> WorkerError:
    here = socket.gethostname()
    if error.errno == errno.EADDRNOTAVAIL:
        problem = f"--rdzv-endpoint {endpoint} is no address of this host ({here}), which is --node-rank 0"
        return WorkerError(
            "EP407", problem, "give all hosts an address of host 0, and each a --node-rank of its own"
        )
    if error.errno == errno.EADDRINUSE:
        problem = f"port {endpoint.port} of {endpoint.host} is in use"
        return WorkerError("EP407", problem, "is there another --node-rank 0? or give all hosts another port")
    return WorkerError(
        "EP407", f"{endpoint} cannot be listened on: {_reason(error)}", "give all hosts another port"
    )


def local_address(endpoint: Endpoint) -> str:
    """The address of this host from which it reaches an endpoint; nothing is sent.

    Raises:
        WorkerError: EP407, no way leads there.
    """
    family, address = addresses_of(endpoint)[0]
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, endpoint.port))
            return str(probe.getsockname()[0])
    except OSError as error:
        problem = f"no way leads from this host ({socket.gethostname()}) to {endpoint}: {_reason(error)}"
        raise WorkerError("EP407", problem, "are both on one network? `ip route get ADDRESS` says") from error


def interface_of(address: str) -> str:
    """The name of the interface that has an address of this host, as GLOO_SOCKET_IFNAME wants it.

    Raises:
        WorkerError: EP407, none has it.
    """
    wanted = ipaddress.ip_address(address.partition("%")[0])
    interfaces = _with_ipv6() if wanted.version == 6 else _with_ipv4()  # noqa: PLR2004 - the protocol's number
    for has, name in interfaces:
        if has == wanted.packed:
            return name
    hint = "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the interface between the hosts"
    raise WorkerError("EP407", f"no interface of this host ({socket.gethostname()}) has {address}", hint)


def interfaces_towards(endpoint: Endpoint | None, given: Mapping[str, str]) -> dict[str, str]:
    """The variables that keep gloo and NCCL to the interface which leads to an endpoint, or to loopback.

    Args:
        endpoint: None where all processes are on one host.
        given: the environment, in which somebody may have said other interfaces; these stay.

    Raises:
        WorkerError: EP407, no way leads there.
    """
    left = [name for name in _INTERFACES if name not in given]
    if not left:
        return {}
    return dict.fromkeys(left, "lo" if endpoint is None else interface_of(local_address(endpoint)))


def _with_ipv4() -> list[tuple[bytes, str]]:
    """Address and name of each interface, also of second addresses."""
    room = array.array("B", bytes(_IFREQ.size * _MAX_INTERFACES))
    begin, _ = room.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        answer = fcntl.ioctl(probe, _SIOCGIFCONF, struct.pack("iL", len(room), begin))
    nbytes, _ = struct.unpack("iL", answer)
    entries = _IFREQ.iter_unpack(room.tobytes()[:nbytes])
    return [(has, name.split(b"\0")[0].split(b":")[0].decode()) for name, _, _, has in entries]


def _with_ipv6() -> list[tuple[bytes, str]]:
    """The same of IPv6, of which the kernel has a list: address, number, prefix, scope, flags, name."""
    try:
        lines = _IPV6.read_text().splitlines()
    except OSError:  # a system without IPv6
        return []
    return [(bytes.fromhex(words[0]), words[5]) for words in map(str.split, lines)]


def _reason(error: Exception) -> str:
    number = getattr(error, "errno", None)
    strerror = getattr(error, "strerror", None)
    return strerror or (os.strerror(number) if number else str(error))
