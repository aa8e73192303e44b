"""A real S3 API behind a proxy that misbehaves as it is told."""

import contextlib
import http.client
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.entry import s3


class Proxy:
    """What goes wrong, by a part of the key; changed while it runs.

    Attributes:
        address: of the endpoint.
        throttle: key -> how many more times it answers 503.
        cut: key -> how many more times it drops the connection in the middle of the body.
        denied: keys that answer 403.
        is_away: whether every connection is dropped at once.
        away_after: number of bodies after which it is away, None for never.
        away_s: seconds after which it is back, None for never.
        max_per_s: bodies that it gives in a second; it answers 503 to others.
        latency_s: added to every answer.
        num_gets: bodies of objects that were asked for, by key.
        payers: method and path of every request -> who it says pays.
    """

    def __init__(self, backend):
        self.behave()
        self.latency_s = 0.0
        self.payers = {}
        self._lock = threading.Lock()
        proxy = self
        host, _, port = backend.removeprefix("http://").partition(":")

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def _forward(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length) if length else None
                proxy.payers[self.command, self.path] = self.headers.get("x-amz-request-payer")
                fault = proxy._decide(self.command, self.path)
                time.sleep(proxy.latency_s)
                if fault == "away":
                    self.close_connection = True
                    return
                if fault in (403, 503):
                    code = {403: "AccessDenied", 503: "SlowDown"}[fault]
                    text = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
                    self._answer(fault, [("Content-Type", "application/xml")], text)
                    return
                connection = http.client.HTTPConnection(host, int(port))
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                data = answer.read()
                connection.close()
                headers = [
                    (name, value)
                    for name, value in answer.getheaders()
                    if name.lower() not in ("transfer-encoding", "connection", "date", "server")
                ]
                self._answer(answer.status, headers, data, cut=fault == "cut")

            def _answer(self, status, headers, data, *, cut=False):
                self.send_response(status)
                for name, value in headers:
                    if name.lower() != "content-length":
                        self.send_header(name, value)
                if self.command == "HEAD":
                    length = {name.lower(): value for name, value in headers}.get("content-length", "0")
                    self.send_header("Content-Length", length)
                else:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data[: len(data) // 2] if cut else data)
                if cut:
                    self.wfile.flush()
                    self.close_connection = True

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _forward  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def behave(self):
        """Forget what should go wrong."""
        self.throttle, self.cut, self.denied = {}, {}, set()
        self.is_away, self.away_after, self.away_s, self.max_per_s = False, None, None, None
        self.num_gets = {}
        self.num_throttled = 0
        self._away_since = 0.0
        self._given = deque()

    def _decide(self, method, path):
        with self._lock:
            key = path.partition("?")[0]
            if method == "GET" and "list-type" not in path:
                self.num_gets[key] = self.num_gets.get(key, 0) + 1
                if self.away_after is not None and sum(self.num_gets.values()) > self.away_after:
                    self.is_away, self.away_after, self._away_since = True, None, time.monotonic()
            if self.is_away and self.away_s is not None and time.monotonic() - self._away_since > self.away_s:
                self.is_away = False
            if self.is_away:
                return "away"
            if method != "GET" or "list-type" in path:
                return None
            if any(part in key for part in self.denied):
                return 403
            if self.max_per_s is not None:
                while self._given and time.monotonic() - self._given[0] > 1:
                    self._given.popleft()
                if len(self._given) >= self.max_per_s:
                    self.num_throttled += 1
                    return 503
                self._given.append(time.monotonic())
            for faults, name in ((self.throttle, 503), (self.cut, "cut")):
                for part, left in faults.items():
                    if part in key and left:
                        faults[part] -= 1
                        return name
            return None

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def serve():
    """Yields the environment that points at the proxy, a client of the API behind it, and the proxy."""
    with s3.serve() as (environment, client):
        proxy = Proxy(environment["AWS_ENDPOINT_URL"])
        try:
            yield {**environment, "AWS_ENDPOINT_URL": proxy.address}, client, proxy
        finally:
            proxy.close()
