"""Calls http_server.py with `requests` and nothing set but http_proxy, as an unchanged program would.

    http_proxy=http://OUTBOUND requests_client.py SERVICE:PORT"""
import sys

import requests

service = sys.argv[1]
base = f"http://{service}"
session = requests.Session()


def rule(text):
    print("holds:", text, flush=True)


def equal(found, expected):
    if found != expected:
        raise SystemExit(f"found {found!r}, expected {expected!r}")


def get(path, **more):
    return session.get(base + path, timeout=20, **more)


for number in range(300):
    reply = get(f"/echo/{number}?a={number}&b=x%20y")
    equal((reply.status_code, reply.json()["path"]), (200, f"/echo/{number}?a={number}&b=x%20y"))
rule("300 requests of one session are each answered with their own")

seen = dict(get("/headers", headers={"X-CamelCase-ID": "7", "x-lower": "8"}).json()["headers"])
equal((seen.get("X-CamelCase-ID"), seen.get("x-lower"), seen.get("Host")), ("7", "8", service))
equal([name for name in seen if name.lower().startswith(("weft-", "proxy-"))], [])
rule("header names keep their case, Host is the service's, and nothing of the mesh or the proxy is left")

for size in (0, 1, 65_535, 1_000_000):
    reply = session.post(f"{base}/post", data=b"y" * size, timeout=20).json()
    equal((reply["method"], reply["length"]), ("POST", size))
reply = session.put(f"{base}/put", data=(b"z" * 1000 for _ in range(100)), timeout=20).json()
equal((reply["method"], reply["length"]), ("PUT", 100_000))
rule("bodies of every size arrive, with a length and in chunks")

equal(get("/chunked").text, "".join(f"piece {n}\n" for n in range(100)))
equal(get("/old").text, "until the end")
rule("answers in chunks and answers that end with the connection are whole")

equal(session.head(f"{base}/head", timeout=20).content, b"")
equal(get("/redirect").json()["path"], "/landed")
get("/cookie")
equal(session.cookies.get_dict(), {"session": "abc", "other": "def"})
rule("HEAD, redirects and two Set-Cookie fields work")

for status in (204, 400, 404, 500, 503):
    reply = get("/status", headers={"X-Status": str(status)})
    equal((reply.status_code, "weft-error" in reply.headers), (status, False))
rule("the application's own statuses are its own: no weft-error")

for number in range(10):
    equal(get("/stray", headers={"X-Status": "204"}).status_code, 204)
    equal(get(f"/after/{number}").json()["path"], f"/after/{number}")
rule("a body that the application wrongly sends with 204 is never taken for the next answer")

reply = session.get("http://nobody.shop:8080/", timeout=20)
equal((reply.status_code, reply.headers["weft-error"]), (502, "unknown_service"))
equal(get("/after").status_code, 200)
rule("a service that does not exist is a 502 that says so, and the session goes on")
print("all hold")
