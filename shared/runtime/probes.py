"""Health and metrics of the relay and the dispatcher, which serve no API: /health/live and /metrics."""

import contextlib
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from shared.runtime import metrics

STUCK_SECONDS = 60.0


class Heart:
    """Tells whether the main loop is running: each iteration calls `beat`. Without beats, the process is restarted."""

    def __init__(self) -> None:
        self.beat()

    def beat(self) -> None:
        self._beaten_at = time.monotonic()

    def is_alive(self) -> bool:
        return time.monotonic() - self._beaten_at < STUCK_SECONDS


def serve(heart: Heart) -> None:
    """Start the server on HOST:PORT if PORT is set. Without HOST, it listens on all addresses, as a pod must."""
    if "PORT" not in os.environ:
        return

    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            match self.path:
                case "/health/live":
                    self._answer(200 if heart.is_alive() else 503, b"", "text/plain")
                case "/metrics":
                    self._answer(200, *metrics.exposition())
                case _:
                    self._answer(404, b"", "text/plain")

        def _answer(self, status: int, content: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(content)))
            with contextlib.suppress(OSError):  # the client has gone
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Do not log probes."""

    server = ThreadingHTTPServer((os.environ.get("HOST", ""), int(os.environ["PORT"])), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
