"""The greeter: says hello in the language it was told to speak. Plain Python, nothing of Weft in it."""

import json
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

GREETING = os.environ.get("GREETING", "Hello")
NAME = os.environ.get("WEFT_WORKLOAD", "greeter")


class Greeter(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self):
        url = urlsplit(self.path)
        if url.path != "/greet":
            self.send_error(404, "there is only /greet?name=...")
            return
        name = parse_qs(url.query).get("name", ["world"])[0][:80]
        body = json.dumps({"greeting": f"{GREETING}, {name}!", "from": NAME}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Greeter)
    # shutdown() waits for the loop that this very thread runs, so another one has to call it.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"{NAME} listens on {server.server_address[1]}", flush=True)
    server.serve_forever()
