"""Has rooms. A room that is taken is a file, so that a killed hotel still knows. The same trip twice is one room, and giving back what is not taken is no mistake: that is what a service
owes to a caller who tries again."""

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DIRECTORY = os.path.join(os.environ.get("BOOKINGS", "bookings"), "hotel")
ROOMS = int(os.environ.get("ROOMS", "4"))
LOCK = threading.Lock()
os.makedirs(DIRECTORY, exist_ok=True)


class Hotel(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def room(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return os.path.join(DIRECTORY, os.path.basename(self.path))

    def do_PUT(self):
        room = self.room()
        with LOCK:
            if not os.path.exists(room):
                if len(os.listdir(DIRECTORY)) >= ROOMS:
                    return self.answer(409, "no room")
                open(room, "w").close()
        self.answer(201, "booked")

    def do_DELETE(self):
        room = self.room()
        with LOCK:
            if os.path.exists(room):
                os.remove(room)
        self.answer(200, "given back")

    def answer(self, status, text):
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Hotel).serve_forever()
