"""Books trips. What is to be done, and what takes it back, is one request to the transaction manager; whatever dies meanwhile, all of it is done or none of it stays."""

import json
import os
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def saga(trip, nights):
    """A room and a seat, at once: neither has to wait for the other."""
    return {
        "steps": [
            {
                "name": "room",
                "action": {"method": "PUT", "url": f"http://hotel/rooms/{trip}", "body": {"nights": nights}},
                "compensation": {"method": "DELETE", "url": f"http://hotel/rooms/{trip}"},
                "after": [],
            },
            {
                "name": "seat",
                "action": {"method": "PUT", "url": f"http://flight/seats/{trip}"},
                "compensation": {"method": "DELETE", "url": f"http://flight/seats/{trip}"},
                "after": [],
            },
        ],
        "time_limit_ms": 120_000,
    }


class Trips(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request = urllib.request.Request(
            "http://txmgr/v1/sagas",
            json.dumps(saga(order["trip"], order.get("nights", 1))).encode(),
            # The same trip, asked for again, is the same saga. The answer comes when it has ended.
            {"Content-Type": "application/json", "Idempotency-Key": order["trip"], "Prefer": "wait=100"},
        )
        with urllib.request.urlopen(request) as answer:
            ended = json.load(answer)
        booked = ended["status"] == "Closed"
        content = json.dumps({"trip": order["trip"], "booked": booked, "why": ended["why"]}).encode() + b"\n"
        self.send_response(201 if booked else 409)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Trips).serve_forever()
