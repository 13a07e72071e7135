"""A WebSocket server that echoes, on a free port of loopback. Prints `listening PORT`. Ends when its standard input does.

A message `close CODE REASON` makes it close; `/refuse` is answered with 403 instead of 101."""
import asyncio
import http
import sys

from websockets.asyncio.server import serve

SUBPROTOCOLS = ("echo.v2", "echo.v1")


async def echo(connection):
    async for message in connection:
        if isinstance(message, str) and message.startswith("close "):
            _, code, reason = message.split(" ", 2)
            await connection.close(int(code), reason)
            return
        await connection.send(message)


def refuse(connection, request):
    if request.path == "/refuse":
        return connection.respond(http.HTTPStatus.FORBIDDEN, "not here\n")


def select(connection, offered):
    return next((name for name in SUBPROTOCOLS if name in offered), None)


async def main():
    async with serve(echo, "127.0.0.1", 0, max_size=64 << 20, select_subprotocol=select,
                     process_request=refuse) as server:
        print("listening", server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main())
