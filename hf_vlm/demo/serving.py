"""Where the page is served: a port that is free, and headers that keep the browser from asking anyone else."""

import errno
import os
import socket
from typing import Any

FIRST_PORT, NUM_PORTS = 7860, 100
_NOT_HERE = errno.EADDRNOTAVAIL

# Scripts and styles of gradio stand in its page itself; pictures come as data and from its own uploads.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)


class OnlyFromHere:
    """Middleware that tells the browser to load nothing from other hosts, and other hosts nothing of where it came from."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, and add the headers to its answer."""

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"content-security-policy", _POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, send_with_policy if scope["type"] == "http" else send)


def free_port(host: str, port: int | None) -> int:
    """The port itself if it is free, or for None the first free one from 7860 on.

    Raises:
        OSError: if it is in use, none is free, or there is no such host here.
        ValueError: if it is no port.
    """
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"`port` must be from 1 to 65535, got {port}. Leave it out for the next free one.")
    for tried in range(FIRST_PORT, FIRST_PORT + NUM_PORTS) if port is None else [port]:
        fault = _fault(host, tried)
        if fault is None:
            return tried
        if isinstance(fault, socket.gaierror) or fault.errno == _NOT_HERE:
            raise OSError(
                f"`host` must be an address of this machine, got {host!r} ({fault.strerror}). Leave it out for this machine "
                "alone, or give 0.0.0.0 for all that reach it."
            ) from fault
        if isinstance(fault, PermissionError):
            raise OSError(
                f"A port that may be used is wanted, got {tried}, which is kept for the system. Use one from 1024 on, or "
                "leave it out."
            ) from fault
    if port is None:
        raise OSError(
            f"A free port from {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1} is wanted, got none. Name another by `--port`."
        )
    raise OSError(
        f"A free port is wanted, got {port} on {host}, which is in use. Name another by `--port`, or leave it out for the next "
        "free one."
    )


def _fault(host: str, port: int) -> OSError | None:
    """Why a port can't be listened on; None if it can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            if os.name == "posix":  # as servers do; elsewhere this would share the port
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as fault:
        return fault
    return None
