"""A server that speaks MongoDB's hello over TLS, and a client of it by MongoDB's own driver.

    mongo.py serve ADDRESS CHAIN KEY       answers hello, ping and everything else with {ok: 1}
    mongo.py session NAME CA ADDRESS       one session by way of ADDRESS: for each line read, a ping; prints `pong` for it
"""

import socket
import socketserver
import ssl
import struct
import sys

import bson
import pymongo

OP_REPLY, OP_QUERY, OP_MSG = 1, 2004, 2013
HELLO = {"helloOk": True, "isWritablePrimary": True, "ismaster": True, "maxBsonObjectSize": 16777216, "maxMessageSizeBytes": 48000000,
         "maxWriteBatchSize": 100000, "minWireVersion": 0, "maxWireVersion": 21, "readOnly": False, "ok": 1.0}


class Session(socketserver.StreamRequestHandler):
    def handle(self):
        while header := self.rfile.read(16):
            length, request, _, code = struct.unpack("<iiii", header)
            body = self.rfile.read(length - 16)
            if code == OP_QUERY:
                # flags, a name with its zero byte, two numbers, the query
                command = bson.decode(body[body.index(0, 4) + 9:])
                head = struct.pack("<iqii", 8, 0, 0, 1)
            else:
                # flags, the kind of the first section, the command
                command = bson.decode(body[5:5 + struct.unpack_from("<i", body, 5)[0]])
                head = struct.pack("<ib", 0, 0)
            wanted = next(iter(command)).lower()
            answer = bson.encode(HELLO if wanted in ("hello", "ismaster") else {"ok": 1.0})
            kind = OP_REPLY if code == OP_QUERY else OP_MSG
            size = 16 + len(head) + len(answer)
            self.wfile.write(struct.pack("<iiii", size, 0, request, kind) + head + answer)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address, chain, key):
        host, port = address.split(":")
        super().__init__((host, int(port)), Session)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(chain, key)

    def get_request(self):
        connection, peer = super().get_request()
        return self.context.wrap_socket(connection, server_side=True), peer


def session(name, ca, address):
    resolve = socket.getaddrinfo
    socket.getaddrinfo = lambda host, *rest, **more: resolve(address if host == name else host, *rest, **more)
    client = pymongo.MongoClient(name, tls=True, tlsCAFile=ca, directConnection=True, serverSelectionTimeoutMS=8000, maxPoolSize=1)
    for _ in sys.stdin:
        try:
            client.admin.command("ping")
        except pymongo.errors.ServerSelectionTimeoutError as error:
            sys.exit(f"{name}: {error.args[0].split(' (')[0]}")
        print("pong", flush=True)


match sys.argv[1:]:
    case ["serve", address, chain, key]:
        Server(address, chain, key).serve_forever()
    case ["session", name, ca, address]:
        session(name, ca, address)
