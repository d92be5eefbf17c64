"""A file server on the loopback that honors ranges, counts what it sends, and can misbehave."""

import contextlib
import hashlib
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class RangeServer:
    """Serves ``files`` (bytes by path). Its fields may be changed between requests.

    ``faults`` are taken one by one by the next requests for a range: ``"drop"`` closes the line
    halfway, ``"stall"`` falls silent there for a second, ``"whole"`` ignores the range, ``"more"``
    claims the range and sends far more, ``"fewer"`` claims it and sends one byte less, ``"other"``
    sends another range than was asked for, ``"unsaid"`` does not say which range it sends. A
    number is the status of an answer without a body to speak of. ``refusals`` are statuses for
    the next requests without a range; ``modified`` is when files were last
    written, ``kind`` what they are called (``text/html``).
    """

    def __init__(self):
        self.files, self.faults, self.always = {}, [], ""
        self.refusals, self.modified, self.kind = [], "", ""
        self.has_tags, self.has_sizes = True, True
        self.sent, self.ranges, self.requests = 0, [], []
        self.lock = threading.Lock()
        self.url = ""

    def put(self, folder, prefix=""):
        """Serves every file below a folder."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.files[f"/{prefix}{path.relative_to(folder)}"] = path.read_bytes()

    def fault(self):
        with self.lock:
            return self.faults.pop(0) if self.faults else self.always

    def count(self, size):
        with self.lock:
            self.sent += size


@contextlib.contextmanager
def serving():
    """Yields a ``RangeServer``; its address is ``server.url``."""
    state = RangeServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # Else each answer waits for the other side's word.

        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.answer(with_body=False)

        def do_GET(self):
            self.answer(with_body=True)

        def answer(self, *, with_body):
            with state.lock:
                state.requests.append(self.path)
                refusal = state.refusals.pop(0) if state.refusals and not self.is_ranged() else 0
            if refusal:
                self.plain(refusal, b"no", with_body)
                return
            path = self.path.partition("?")[0]
            data = state.files.get(path)
            if data is None:
                self.plain(404, b"no such file", with_body)
                return
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            fault = state.fault() if with_body and asked else ""
            start, stop = (int(asked[1]), int(asked[2]) + 1) if asked else (0, len(data))
            if with_body:
                with state.lock:
                    state.ranges.append((path, start, stop))
            if isinstance(fault, int):
                self.plain(fault, b"no", with_body)
                return
            if asked and start >= len(data):
                self.plain(416, b"", with_body)
                return
            body, status = data[start:stop], 206 if asked else 200
            if fault == "whole":
                body, status = data, 200
            elif fault == "more":
                body += bytes(2**22)
            elif fault == "other":
                start, body = start + 1, body[1:]
            elif fault == "fewer":
                body = body[:-1]
            self.send_response(status)
            if state.has_sizes or with_body:
                self.send_header("Content-Length", str(len(body)))
            else:
                self.send_header("Connection", "close")
                self.close_connection = True
            if status == 206 and fault != "unsaid":
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            if state.has_tags:
                self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            if state.kind:
                self.send_header("Content-Type", state.kind)
            if state.modified:
                self.send_header("Last-Modified", state.modified)
            self.end_headers()
            if not with_body:
                return
            if fault in ("drop", "stall"):
                body = body[: len(body) // 2]
                self.close_connection = True
            for at in range(0, len(body), 2**16):
                # Before, so that who has the bytes also sees them counted.
                state.count(len(body[at : at + 2**16]))
                try:
                    self.wfile.write(body[at : at + 2**16])
                except OSError:  # The other side has had enough.
                    self.close_connection = True
                    return
            if fault == "stall":
                time.sleep(1)

        def is_ranged(self):
            return "Range" in self.headers

        def plain(self, status, body, with_body):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # The other side hangs up when it has had enough.
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
