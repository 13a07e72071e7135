"""A gRPC server without generated code: all four call kinds over plain bytes, on a free port of loopback.

Prints `listening PORT`. Ends when its standard input does."""
import sys
import time
from concurrent import futures

import grpc

RECEIVED = {"cancelled": 0}


def unary(request, context):
    metadata = context.invocation_metadata()
    seen = {key: value for key, value in metadata}
    # What the client sent comes back as leading and trailing metadata, text and binary.
    context.send_initial_metadata((("x-lead", seen.get("x-ask", "-")), ("x-lead-bin", seen.get("x-ask-bin", b""))))
    context.set_trailing_metadata((("x-trail", seen.get("x-ask", "-")), ("x-trail-bin", b"\x00\xff" + request[:2])))
    return request[::-1]


def server_stream(request, context):
    for number in range(int(request)):
        yield b"%d" % number


def client_stream(requests, context):
    count = size = 0
    for request in requests:
        count, size = count + 1, size + len(request)
    return b"%d %d" % (count, size)


def both_streams(requests, context):
    for request in requests:
        yield request.upper()


def slow(request, context):
    # Longer than any deadline in the tests; ends early when the caller has gone.
    until = time.monotonic() + 20
    while context.is_active() and time.monotonic() < until:
        time.sleep(0.01)
    return b"late"


def endless(request, context):
    context.add_callback(lambda: RECEIVED.__setitem__("cancelled", RECEIVED["cancelled"] + 1))
    number = 0
    while context.is_active():
        yield b"%d" % number
        number += 1
        time.sleep(0.005)


def cancelled(request, context):
    return b"%d" % RECEIVED["cancelled"]


def refuse(request, context):
    # Nothing but a status: a response of trailers only.
    context.set_trailing_metadata((("x-why", "because"),))
    context.abort(grpc.StatusCode(tuple(code for code in grpc.StatusCode if code.value[0] == int(request))[0].value),
                  "refused: 100 % sure, täglich")


def remaining(request, context):
    left = context.time_remaining()
    return b"none" if left is None or left > 1e6 else b"%d" % int(left * 1000)


def peer_headers(request, context):
    return repr(sorted((k, v) for k, v in context.invocation_metadata() if isinstance(v, str))).encode()


HANDLERS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
    "BothStreams": grpc.stream_stream_rpc_method_handler(both_streams),
    "Slow": grpc.unary_unary_rpc_method_handler(slow),
    "Endless": grpc.unary_stream_rpc_method_handler(endless),
    "Cancelled": grpc.unary_unary_rpc_method_handler(cancelled),
    "Refuse": grpc.unary_unary_rpc_method_handler(refuse),
    "Remaining": grpc.unary_unary_rpc_method_handler(remaining),
    "Headers": grpc.unary_unary_rpc_method_handler(peer_headers),
}

server = grpc.server(futures.ThreadPoolExecutor(max_workers=16),
                     options=[("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)])
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("interop.Test", HANDLERS),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print("listening", port, flush=True)
sys.stdin.read()
server.stop(0)
