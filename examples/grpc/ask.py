"""Asks the stock: `ask.py METHOD ITEM [TIMES]`, one line for each answer.

grpcio finds the mesh by itself, by http_proxy. What `weft up` starts has that set.
"""

import sys

import grpc

method, item, times = sys.argv[1], sys.argv[2], int((sys.argv[3:] or ["1"])[0])
TEXT = {"request_serializer": str.encode, "response_deserializer": bytes.decode}

with grpc.insecure_channel("stock:50051") as channel:
    kind = channel.unary_stream if method == "Watch" else channel.unary_unary
    call = kind(f"/shop.v1.Stock/{method}", **TEXT)
    for _ in range(times):
        try:
            answer = call(item, timeout=5)
            for line in answer if method == "Watch" else [answer]:
                print(line)
        except grpc.RpcError as error:
            print(f"{error.code().name}: {error.details()}")
