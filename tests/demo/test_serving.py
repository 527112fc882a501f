"""Where the page is served: a free port, or words about the one that isn't; and headers that keep the browser here."""

import asyncio
import socket

import pytest

from hf_vlm.demo import serving
from hf_vlm.demo.serving import OnlyFromHere, free_port


@pytest.fixture
def used_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_port_in_use_is_told_with_the_way_out(used_port):
    with pytest.raises(
        OSError, match=rf"got {used_port} on 127.0.0.1, which is in use. Name another by `--port`, or leave"
    ):
        free_port("127.0.0.1", used_port)


def test_next_free_port_is_taken_where_none_is_asked_for(used_port, monkeypatch):
    monkeypatch.setattr(serving, "FIRST_PORT", used_port)
    found = free_port("127.0.0.1", None)
    assert used_port < found < used_port + serving.NUM_PORTS
    monkeypatch.setattr(serving, "NUM_PORTS", 1)
    with pytest.raises(OSError, match="got none. Name another by `--port`"):
        free_port("127.0.0.1", None)


def test_free_port_is_given_back(used_port):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    assert free_port("127.0.0.1", free) == free


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_host_that_is_not_this_machine_is_told(host):
    with pytest.raises(OSError, match=f"`host` must be an address of this machine, got '{host}'"):
        free_port(host, None)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_number_that_is_no_port_is_refused(port):
    with pytest.raises(ValueError, match=f"from 1 to 65535, got {port}"):
        free_port("127.0.0.1", port)


def test_every_answer_tells_the_browser_to_stay_here():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"x"})

    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(OnlyFromHere(app)({"type": "http"}, None, send))
    headers = dict(sent[0]["headers"])
    assert headers[b"a"] == b"b" and headers[b"referrer-policy"] == b"no-referrer"
    rules = dict(rule.strip().split(" ", 1) for rule in headers[b"content-security-policy"].decode().split(";"))
    assert rules["default-src"] == "'self'" and not any("http" in rule or "*" in rule for rule in rules.values())
    assert sent[1] == {"type": "http.response.body", "body": b"x"}
