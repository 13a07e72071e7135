"""The stock of a shop, over gRPC. Plain grpcio, nothing of Weft in it.

Messages are text, so that no code has to be generated; with protobuf everything else is the same. It listens on PORT.
"""

import os
import signal
import threading
from concurrent import futures

import grpc

NAME = os.environ.get("WEFT_WORKLOAD", "stock")
EVERY = int(os.environ.get("FAIL_EVERY", "0"))

lock = threading.Lock()
calls = 0
left = {"tea": 10, "coffee": 7}


def answer(text):
    return f"call {calls}: {text}"


def begin(context):
    """Counts a call, and lets it fail if it is its turn."""
    global calls
    with lock:
        calls += 1
        if EVERY and calls % EVERY == 0:
            context.abort(grpc.StatusCode.UNAVAILABLE, f"{NAME} has a moment")


def count(item, context):
    begin(context)
    return answer(f"{left.get(item, 0)} {item}")


def take(item, context):
    begin(context)
    with lock:
        left[item] = max(left.get(item, 0) - 1, 0)
    return answer(f"{left[item]} {item} left")


def watch(item, context):
    begin(context)
    for number in range(3):
        yield answer(f"{left.get(item, 0)} {item}, message {number + 1} of 3")


TEXT = {"request_deserializer": bytes.decode, "response_serializer": str.encode}
METHODS = {
    "Count": grpc.unary_unary_rpc_method_handler(count, **TEXT),
    "Take": grpc.unary_unary_rpc_method_handler(take, **TEXT),
    "Watch": grpc.unary_stream_rpc_method_handler(watch, **TEXT),
}

if __name__ == "__main__":
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.v1.Stock", METHODS),))
    port = server.add_insecure_port(f"127.0.0.1:{os.environ['PORT']}")
    server.start()
    print(f"{NAME} listens on {port}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: server.stop(1))
    server.wait_for_termination()
