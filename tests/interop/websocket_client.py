"""Talks to websocket_server.py through a sidecar, both ways a client can: by CONNECT, and straight to the outbound port.

    websocket_client.py SERVICE:PORT OUTBOUND"""
import os
import socket
import sys

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

service, outbound = sys.argv[1:3]
host, port = outbound.rsplit(":", 1)


def rule(text):
    print("holds:", text, flush=True)


def equal(found, expected):
    if found != expected:
        raise SystemExit(f"found {str(found)[:200]!r}, expected {str(expected)[:200]!r}")


def by_connect(path, **more):
    return connect(f"ws://{service}{path}", proxy=f"http://{outbound}", max_size=64 << 20, open_timeout=20, **more)


def straight(path, **more):
    sock = socket.create_connection((host, int(port)), timeout=20)
    sock.settimeout(None)
    return connect(f"ws://{service}{path}", sock=sock, proxy=None, max_size=64 << 20, open_timeout=20, **more)


for name, way in (("CONNECT", by_connect), ("the outbound port", straight)):
    with way("/echo") as ws:
        for number in range(100):
            ws.send(f"text {number} – ünïcode")
            equal(ws.recv(timeout=20), f"text {number} – ünïcode")
        rule(f"{name}: text comes back, message by message")
        ws.send(b"")
        equal(ws.recv(timeout=20), b"")
        ws.send(bytes(range(256)))
        equal(ws.recv(timeout=20), bytes(range(256)))
        rule(f"{name}: binary comes back, also of length 0")
        large = os.urandom(1 << 20) * 8
        ws.send(large)
        equal(ws.recv(timeout=60), large)
        rule(f"{name}: 8 MiB come back whole")
        ws.send(["in ", "several ", "frames"])
        equal(ws.recv(timeout=20), "in several frames")
        rule(f"{name}: fragments come back as one message")
        if not ws.ping().wait(timeout=20):
            raise SystemExit("no pong")
        rule(f"{name}: a ping is answered")
        ws.close(1000, "enough")
        equal((ws.close_code, ws.close_reason), (1000, "enough"))
        rule(f"{name}: the closing handshake is completed")
    with way("/echo", subprotocols=["echo.v1"], compression="deflate") as ws:
        equal(ws.subprotocol, "echo.v1")
        ws.send("close 4321 the server has had enough")
        try:
            ws.recv(timeout=20)
            raise SystemExit("expected the server to close")
        except ConnectionClosed as closed:
            equal((closed.rcvd.code, closed.rcvd.reason), (4321, "the server has had enough"))
        rule(f"{name}: the server's code and reason for closing arrive; sub-protocols are agreed on")
    try:
        way("/refuse")
        raise SystemExit("expected 403")
    except InvalidStatus as refused:
        equal((refused.response.status_code, refused.response.body), (403, b"not here\n"))
    rule(f"{name}: an upgrade that the application refuses is its own answer")
print("all hold")
