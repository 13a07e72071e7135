"""The one application of all the small examples: it answers with its name, and misbehaves as it is told to.

Plain Python, nothing of Weft in it. It listens on PORT and makes its own calls through http_proxy.

What it does, by environment variable, for all of its answers:

    ECHO_LABEL=v2       says this behind its name
    ECHO_SLOW=300       takes 300 ms to answer
    ECHO_STATUS=503     answers with this status
    ECHO_EVERY=3        is slow or fails only for every third request, and does well otherwise
    ECHO_HEALTH=503     answers /health with this status
    ECHO_HEADERS="Cache-Control: max-age=10 | ETag: auto"   says these, too; the tag is made of the text, and who has
                        what it stands for gets 304
    ECHO_CALLS="http://b:8080/ http://c:8080/"   calls these, one after the other, before it answers

`?slow=300`, `?status=503` in a request are for this request alone; `?show=NAME` shows a header of the request, `?number`
which of all requests it is. One that calls others passes these on to them. `/count` says how many requests there were.
`/become?status=503` changes what is in the environment while it runs: call it at the address under APPLICATION, past the
mesh.
"""

import http.client
import itertools
import os
import select
import signal
import socket
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

NAME = os.environ.get("WEFT_WORKLOAD", "echo")
NAMES = ("label", "slow", "status", "every", "health", "calls", "headers")
SETTINGS = {name: os.environ.get("ECHO_" + name.upper(), "") for name in NAMES}
# Sent on with every call, so that all hops of one request are one trace. Nothing else is asked of an application.
CARRIED = ("traceparent", "tracestate")
numbers = itertools.count(1)
seen = 0


class CallerGone(Exception):
    """Whoever asked does not wait any longer."""


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    disable_nagle_algorithm = True

    def answer(self):
        global seen
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        asked = dict(parse_qsl(url.query, keep_blank_values=True))
        if url.path == "/become":
            SETTINGS.update({name: value for name, value in asked.items() if name in NAMES})
            return self.say(200, f"{NAME}: {url.query}")
        if url.path == "/health":
            return self.say(int(SETTINGS["health"] or 200), "health")
        if url.path == "/count":
            return self.say(200, f"{NAME} had {seen} requests")
        if SETTINGS["calls"]:
            asked = {}  # for those that are called
        number = seen = next(numbers)
        turn = number % int(SETTINGS["every"] or 1) == 0
        status = int(asked.get("status") or (turn and SETTINGS["status"]) or 200)
        text = f"{NAME} {SETTINGS['label']}".strip()
        if "number" in asked:
            text += f" number {number}"
        if "show" in asked:
            text += f" {asked['show']}: {self.headers.get(asked['show'], 'none')}"
        started = time.monotonic()
        try:
            self.wait(int(asked.get("slow") or (turn and SETTINGS["slow"]) or 0) / 1000)
            for call in SETTINGS["calls"].split():
                answered, body = self.call(call + (f"?{url.query}" if url.query else ""))
                text += f" > {body}"
                if answered >= 500:
                    status = 502
                    break
            self.wait(0)
        except CallerGone:
            took = time.monotonic() - started
            print(f"nobody waits for {self.path} any more; stopped after {took:.1f} s", flush=True)
            self.close_connection = True
            return
        own = [line.split(":", 1) for line in SETTINGS["headers"].split("|") if ":" in line]
        tag = f'"{zlib.crc32(text.encode()):08x}"'
        own = [(name.strip(), value.strip().replace("auto", tag)) for name, value in own]
        if ("ETag", tag) in own and tag in self.headers.get("If-None-Match", "") and status < 300:
            return self.say(304, "", own)
        self.say(status, text if status < 400 else f"{text} fails with {status}", own if status < 400 else [])

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = answer

    def wait(self, seconds, for_answer=None):
        """Waits so long, or for an answer, and looks whether anybody still waits for ours."""
        until = time.monotonic() + seconds
        watched = [self.connection] + ([for_answer] if for_answer else [])
        while True:
            left = max(0, until - time.monotonic())
            readable, _, _ = select.select(watched, [], [], left)
            if self.connection in readable and not self.connection.recv(1, socket.MSG_PEEK):
                raise CallerGone
            if left == 0 or for_answer in readable:
                return
            if readable:
                watched.remove(self.connection)  # the next request is here already

    def call(self, url):
        """Calls through the mesh. Whoever calls us and goes away ends this call, too: it is closed."""
        headers = {name: self.headers[name] for name in CARRIED if name in self.headers}
        mesh = http.client.HTTPConnection(urlsplit(os.environ["http_proxy"]).netloc, timeout=30)
        try:
            mesh.request("GET", url, headers=headers)
            self.wait(30, mesh.sock)
            answer = mesh.getresponse()
            return answer.status, answer.read().decode(errors="replace").strip()
        except (OSError, http.client.HTTPException) as error:
            return 502, str(error)
        finally:
            mesh.close()

    def say(self, status, text, headers=()):
        body = f"{text}\n".encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and status != 304:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A connection that the other side closes is nothing to tell of."""


if __name__ == "__main__":
    server = Server(("127.0.0.1", int(os.environ["PORT"])), Echo)
    # shutdown() waits for the loop that this very thread runs, so another one has to call it.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()
