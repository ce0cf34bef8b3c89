"""Every Python process that the tests start reads this first: connections beyond this machine are refused, and written down.

``FEDSTILL_GUARD`` names the file; without it nothing is done. Ray's dashboard asks the addresses where clouds say who they are,
also with its statistics off, and has no switch for that: it is refused like all others, and not written down.
"""

import os
import socket
import sys
from ipaddress import ip_address
from typing import Any

LOG = os.environ.get("FEDSTILL_GUARD")
KNOWN = "/ray/dashboard/dashboard.py"


def _own() -> str:
    """This machine's address, as Ray's processes call each other by; nothing is sent to find it."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            asked.connect(("192.0.2.1", 9))
            return str(asked.getsockname()[0])
    except OSError:
        return "127.0.0.1"


OWN = _own() if LOG else ""


def _beyond(host: Any) -> bool:
    text = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host or "localhost")
    if text in ("localhost", "", OWN, socket.gethostname()):
        return False
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return True  # a name that somebody would have to be asked for
    return not (address.is_loopback or address.is_unspecified)


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    host = None
    if event == "socket.connect":
        who, address = arguments
        # a datagram socket that is connected sends nothing; that is how a machine finds its own address
        if who.family in (socket.AF_INET, socket.AF_INET6) and who.type != socket.SOCK_DGRAM:
            host = address[0]
    elif event == "socket.sendto":
        who, address = arguments
        if who.family in (socket.AF_INET, socket.AF_INET6) and isinstance(address, tuple):
            host = address[0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    if host is not None and _beyond(host):
        if KNOWN not in " ".join(sys.argv):
            with open(str(LOG), "a", encoding="utf-8") as log:
                log.write(f"{event} {host!r} by {' '.join(sys.argv)[:200]}\n")
        raise PermissionError(f"tests stay on this machine: {event} {host!r}")


if LOG:
    sys.addaudithook(_watch)
