"""A proxy on loopback in front of an S3 server that does what networks do to requests and answers."""

import http.client
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["busy", "reset", "truncated", "slow", "lost"]
BUSY = b"<?xml version='1.0'?><Error><Code>ServiceUnavailable</Code><Message>later</Message></Error>"
HOP_BY_HOP = {"connection", "transfer-encoding", "expect", "content-length", "keep-alive", "server", "date"}


class FaultyProxy:
    """Forwards to `host:port`, one request at a time, as the server behind it was not made for more."""

    def __init__(self, host: str, port: int, shares: Mapping[Fault, float], *, slow_seconds: float, seed: int) -> None:
        self.shares, self.slow_seconds = dict(shares), slow_seconds
        self.met: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._draws, self._forwards = threading.Lock(), threading.Lock()
        self._upstream = host, port
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "FaultyProxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def draw(self) -> Fault | None:
        with self._draws:
            mark = self._random.random()
            for fault, share in self.shares.items():
                if (mark := mark - share) < 0:
                    self.met[fault] += 1
                    return fault
            self.met["none"] += 1
            return None

    def forward(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        with self._forwards:
            connection = http.client.HTTPConnection(*self._upstream, timeout=30)
            try:
                connection.request(method, path, body, dict(headers))
                answer = connection.getresponse()
                return answer.status, dict(answer.getheaders()), answer.read()
            finally:
                connection.close()

    def _handler(proxy) -> type[BaseHTTPRequestHandler]:  # noqa: N805 -- `self` is the handler's
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = proxy.draw()
                if fault == "busy":
                    self.answer(503, {"Content-Type": "application/xml"}, BUSY)
                elif fault == "reset":
                    self.cut()
                else:
                    kept = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
                    self.disturbed(fault, *proxy.forward(self.command, self.path, kept, body))

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

            def disturbed(self, fault: Fault | None, status: int, headers: dict[str, str], body: bytes) -> None:
                if fault == "lost" or (fault == "truncated" and not body):
                    self.cut()
                elif fault == "slow":
                    self.answer(status, headers, body, pause=proxy.slow_seconds)
                else:
                    self.answer(status, headers, body, sent=len(body) // 2 if fault == "truncated" else len(body))

            def answer(
                self, status: int, headers: Mapping[str, str], body: bytes, *, sent: int | None = None, pause: float = 0
            ) -> None:
                try:
                    self.send_response_only(status)
                    for name, value in headers.items():
                        if name.lower() not in HOP_BY_HOP:
                            self.send_header(name, value)
                    length = {name.lower(): value for name, value in headers.items()}.get("content-length", "0")
                    self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
                    if pause:
                        proxy_wait(pause)
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(body[:sent])
                    if sent is not None and sent < len(body):
                        self.cut()
                except OSError:  # the client has given up
                    self.close_connection = True

            def cut(self) -> None:
                """End the connection at once, without a goodbye."""
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        return Handler


def proxy_wait(seconds: float) -> None:
    threading.Event().wait(seconds)
