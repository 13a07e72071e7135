"""Calls grpc_server.py in every way a gRPC client can, through a sidecar, and fails at the first thing that is wrong.

    grpc_client.py proxy SERVICE:PORT OUTBOUND    the channel's target is the service; http_proxy leads to the sidecar
    grpc_client.py direct SERVICE:PORT OUTBOUND   the channel's target is the sidecar; the authority names the service

Prints one line for each rule that holds."""
import os
import sys
import threading
import time

way, service, outbound = sys.argv[1:4]
if way == "proxy":
    # grpcio reads it when the channel is made, and asks the proxy with CONNECT.
    os.environ["http_proxy"] = os.environ["grpc_proxy"] = f"http://{outbound}"
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        os.environ.pop(name, None)

import grpc  # noqa: E402  (the proxy must be set before)

SIZE = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
if way == "proxy":
    channel = grpc.insecure_channel(service, options=SIZE)
else:
    channel = grpc.insecure_channel(outbound, options=SIZE + [
        ("grpc.default_authority", service), ("grpc.enable_http_proxy", 0)])

LIMIT = 30


def method(name, kind="unary_unary"):
    return getattr(channel, kind)(f"/interop.Test/{name}")


def rule(text):
    print("holds:", text, flush=True)


def equal(found, expected):
    if found != expected:
        raise SystemExit(f"found {found!r}, expected {expected!r}")


def fails(call, code):
    try:
        found = call()
    except grpc.RpcError as error:
        if error.code() != code:
            raise SystemExit(f"expected {code}, got {error.code()}: {error.details()}")
        return error
    raise SystemExit(f"expected {code}, got an answer: {found!r}")


reply, call = method("Unary").with_call(
    b"abc", timeout=LIMIT, wait_for_ready=False, metadata=(("x-ask", "hello"), ("x-ask-bin", b"\x01\x02\xfe")))
equal(reply, b"cba")
rule("a unary call is answered")
leading = dict(call.initial_metadata())
equal((leading["x-lead"], leading["x-lead-bin"]), ("hello", b"\x01\x02\xfe"))
trailing = dict(call.trailing_metadata())
equal((trailing["x-trail"], trailing["x-trail-bin"]), ("hello", b"\x00\xffab"))
rule("metadata goes both ways, leading and trailing, text and binary")
equal(call.code(), grpc.StatusCode.OK)

big = os.urandom(1 << 20) * 8
equal(method("Unary")(big, timeout=LIMIT), big[::-1])
rule("a message of 8 MiB passes whole in both directions")

equal(list(method("ServerStream", "unary_stream")(b"1000", timeout=LIMIT)), [b"%d" % n for n in range(1000)])
equal(list(method("ServerStream", "unary_stream")(b"0", timeout=LIMIT)), [])
rule("server streaming keeps number and order, also of no message at all")

equal(method("ClientStream", "stream_unary")((b"x" * 1000 for _ in range(500)), timeout=LIMIT), b"500 500000")
equal(method("ClientStream", "stream_unary")(iter(()), timeout=LIMIT), b"0 0")
rule("client streaming keeps every message, also none")

# Each message is sent only after the answer to the one before: nothing may wait for more.
answers = threading.Semaphore(1)


def lines():
    for number in range(50):
        if not answers.acquire(timeout=LIMIT):
            return
        yield b"line %d" % number


count = 0
for answer in method("BothStreams", "stream_stream")(lines(), timeout=LIMIT):
    equal(answer, b"LINE %d" % count)
    count += 1
    answers.release()
equal(count, 50)
rule("both streams flow at once, message by message")

began = time.monotonic()
fails(lambda: method("Slow")(b"", timeout=0.3), grpc.StatusCode.DEADLINE_EXCEEDED)
if time.monotonic() - began > 5:
    raise SystemExit("the deadline came seconds late")
left = int(method("Remaining")(b"", timeout=20))
# gRPC rounds what it sends upwards.
if not 10_000 < left <= 21_000:
    raise SystemExit(f"the server has {left} ms left of 20,000")
rule("deadlines reach the server, and are kept")

for code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.RESOURCE_EXHAUSTED,
             grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNAUTHENTICATED):
    error = fails(lambda: method("Refuse")(b"%d" % code.value[0], timeout=LIMIT), code)
    equal(error.details(), "refused: 100 % sure, täglich")
    equal(dict(error.trailing_metadata())["x-why"], "because")
rule("a status without messages arrives with its details and trailers")
fails(lambda: method("NoSuchMethod")(b"", timeout=LIMIT), grpc.StatusCode.UNIMPLEMENTED)
rule("an unknown method is the server's UNIMPLEMENTED")

before = int(method("Cancelled")(b"", timeout=LIMIT))
stream = method("Endless", "unary_stream")(b"", timeout=LIMIT)
for _ in range(3):
    next(stream)
stream.cancel()
until = time.monotonic() + 10
while int(method("Cancelled")(b"", timeout=LIMIT)) == before:
    if time.monotonic() > until:
        raise SystemExit("the server never saw that the call was cancelled")
    time.sleep(0.02)
equal(stream.code(), grpc.StatusCode.CANCELLED)
rule("cancellation reaches the server")

futures = [method("Unary").future(b"%d" % n, timeout=LIMIT) for n in range(200)]
equal([f.result() for f in futures], [(b"%d" % n)[::-1] for n in range(200)])
rule("200 calls at once on one channel are each answered with their own")

headers = dict(eval(method("Headers")(b"", timeout=LIMIT)))
if any(name.startswith("weft-") and name != "weft-timeout-ms" for name in headers):
    raise SystemExit(f"the application sees the sidecars' own fields: {headers}")
equal(len(headers["traceparent"]), 55)
rule("the application sees a traceparent, and of the sidecars' own fields only how much time is left")
channel.close()

if way == "direct":
    lost = grpc.insecure_channel(outbound, options=[
        ("grpc.default_authority", "nobody:50051"), ("grpc.enable_http_proxy", 0)])
    error = fails(lambda: lost.unary_unary("/interop.Test/Unary")(b"", timeout=LIMIT), grpc.StatusCode.UNAVAILABLE)
    if "unknown_service" not in error.details() or "nobody" not in error.details():
        raise SystemExit(f"the error does not say what is wrong: {error.details()}")
    rule("a service that does not exist is UNAVAILABLE, and the message says so")
    lost.close()
print("all hold")
