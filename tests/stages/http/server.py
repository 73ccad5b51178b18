"""A server of HTTP/1.1 that tells what it has got. Its arguments: a port, and its name."""

import hashlib
import http.server
import json
import socket
import sys
import time

PORT, NAME = int(sys.argv[1]), sys.argv[2]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        left = int(self.headers.get("Content-Length", 0))
        while left:
            part = self.rfile.read1(min(left, 65536))
            if not part:
                return
            left -= len(part)
            yield part

    def serve(self):
        words = self.path.split("?")[0].strip("/").split("/")
        match words:
            case ["refuse"]:
                self.close_connection = True
                return self.send(413, b"too much")
            case ["close"]:
                self.close_connection = True
                return
            case ["ends", name] if name == NAME:
                self.close_connection = True
                return
            case ["falls", name] if name == NAME:
                Handler.is_sick = True
                self.close_connection = True
                return
            case ["flaky", times, key]:
                tries = Handler.tries[key] = Handler.tries.get(key, 0) + 1
                digest = self.digest()
                return self.send(200 if tries > int(times) else 503, f"{tries} {digest}".encode())
            case ["slow", seconds]:
                time.sleep(float(seconds))
                return self.send(200, b"late")
            case ["stall", seconds]:
                self.send_response(200)
                self.send_header("Content-Length", "10")
                self.end_headers()
                self.wfile.write(b"hello")
                self.wfile.flush()
                time.sleep(float(seconds))
                self.wfile.write(b"world")
                return
            case ["drip", times]:
                self.send_response(200)
                self.send_header("Content-Length", times)
                self.end_headers()
                for _ in range(int(times)):
                    self.wfile.write(b".")
                    self.wfile.flush()
                    time.sleep(0.25)
                return
            case ["upgrade"]:
                self.send_response(101)
                self.send_header("Connection", "upgrade")
                self.send_header("Upgrade", "echo")
                self.end_headers()
                self.close_connection = True
                while part := self.rfile.read1(65536):
                    self.wfile.write(part)
                return
            case ["sick"]:
                Handler.is_sick = True
                return self.send(200, b"so be it")
            case ["health"]:
                return self.send(503 if Handler.is_sick else 200, b"")
            case ["die"]:
                self.send_response(200)
                self.send_header("Content-Length", "10")
                self.end_headers()
                self.wfile.write(b"hello")
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                self.close_connection = True
                return
            case ["big", megabytes]:
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.send_header("Trailer", "Digest")
                self.end_headers()
                part = bytes(range(256)) * 4096
                total = hashlib.sha256()
                for _ in range(int(megabytes)):
                    total.update(part)
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                self.wfile.write(b"0\r\nDigest: %s\r\n\r\n" % total.hexdigest().encode())
                return
            case ["status", status]:
                return self.send(int(status), b"" if status in ("204", "304") else b"as asked")
        told = {
            "name": NAME,
            "method": self.command,
            "path": self.path,
            "headers": [[name.lower(), value] for name, value in self.headers.items()],
            "digest": self.digest(),
        }
        self.send(200, json.dumps(told).encode())

    def digest(self):
        total = hashlib.sha256()
        for part in self.body():
            total.update(part)
        return total.hexdigest()

    def send(self, status, body):
        self.send_response(status)
        self.send_header("X-Server", NAME)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    tries = {}
    is_sick = False
    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = serve

    def handle_expect_100(self):
        # Whoever is refused is not asked for the body.
        return True if self.path == "/refuse" else super().handle_expect_100()

    def log_message(self, form, *args):
        print(NAME, form % args, flush=True)


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024


Server(("", PORT), Handler).serve_forever()
