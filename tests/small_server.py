"""A server of a few lines that is not pfms, on a real port."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answers(BaseHTTPRequestHandler):
    """What a test's small server says: `answer` is called for each request."""

    answer: Callable[["Answers"], None]

    def say(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def skip_body(self) -> bytes:
        """Read the body in pieces; its first."""
        left = int(self.headers["Content-Length"])
        first = piece = self.rfile.read(min(left, 1 << 16))
        while piece and (left := left - len(piece)):
            piece = self.rfile.read(min(left, 1 << 16))
        return first

    def do_GET(self) -> None:
        type(self).answer(self)

    do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def small_server(answer: Callable[[Answers], None]) -> Iterator[str]:
    handler = type("Handler", (Answers,), {"answer": staticmethod(answer)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()
