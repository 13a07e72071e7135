"""The caller: a page that asks the greeter by its mesh name. urllib finds the mesh by itself, through http_proxy."""

import html
import json
import os
import signal
import threading
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Sent on with every call, so that all hops of one request are one trace.
CARRIED = ("traceparent", "tracestate", "x-request-id", "b3")


class Caller(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        name = urllib.parse.parse_qs(url.query).get("name", ["world"])[0]
        status, text = self.greet(name)
        body = (
            "<!doctype html><meta charset=utf-8><title>Hello</title>"
            "<body style='font:1.4rem system-ui;max-width:34rem;margin:15vh auto;padding:0 1rem'>"
            f"<p>{html.escape(text)}</p><form><input name=name placeholder='Your name' style='font:inherit'></form>\n"
        ).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def greet(self, name):
        request = urllib.request.Request("http://greeter:8080/greet?" + urllib.parse.urlencode({"name": name}))
        for header in CARRIED:
            if header in self.headers:
                request.add_header(header, self.headers[header])
        try:
            with urllib.request.urlopen(request, timeout=3) as answer:
                said = json.load(answer)
                return 200, f"{said['greeting']} ({said['from']})"
        except urllib.error.HTTPError as error:
            # What the mesh says itself is one line that tells what happened.
            return 502, f"The greeter answered {error.code}: {error.read(300).decode(errors='replace').strip()}"
        except OSError as error:
            return 502, f"The greeter cannot be reached: {error}"

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Caller)
    # shutdown() waits for the loop that this very thread runs, so another one has to call it.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"caller listens on {server.server_address[1]}", flush=True)
    server.serve_forever()
