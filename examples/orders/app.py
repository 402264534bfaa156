"""What the Python apps of the shop have in common: a small JSON server, and a ledger in a file."""

import json
import os
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def call(url, body):
    """Posts JSON to another app by its plain name, and returns its answer."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def write_down(app, **entry):
    """One line in this app's ledger. It is in the file before anything else happens, so that a killed app has it too."""
    directory = os.environ.get("LEDGER", "ledger")
    os.makedirs(directory, exist_ok=True)
    line = json.dumps(entry) + "\n"
    file = os.open(os.path.join(directory, app + ".jsonl"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, line.encode())
    os.close(file)


def serve(handle):
    """Answers POSTs with what `handle(path, body)` returns."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                self.answer(201, handle(self.path, body))
            except urllib.error.HTTPError as error:
                # What stands behind this app can't do it: neither can this app, now.
                self.answer(error.code, {"error": error.read().decode(errors="replace")}, error.headers.get("Retry-After"))

        def answer(self, status, body, retry_after=None):
            content = json.dumps(body).encode() + b"\n"
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if retry_after:
                self.send_header("Retry-After", retry_after)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    Server(("127.0.0.1", int(os.environ.get("PORT", "8080"))), Handler).serve_forever()
