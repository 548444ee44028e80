"""Plain sockets on a machine of the lab: a program, for a namespace is entered by a process.

lab_sockets.py serve PORT [BYTES]     tells everybody which address it sees, and sends BYTES
lab_sockets.py ask IP PORT SOURCE     from the port SOURCE, 0 for any; prints what came of it
"""

from __future__ import annotations

import json
import socket
import sys
import time

PATIENCE_S = 1.0
"""Nothing in a lab takes longer, but what a router drops."""


def serve(port: int, num_bytes: int) -> None:
    family = socket.AF_INET6
    with socket.create_server(("::", port), family=family, dualstack_ipv6=True) as server:
        say("ready")
        while True:
            connection, (ip, seen, *_) = server.accept()
            with connection:
                told = json.dumps([ip.removeprefix("::ffff:"), seen])
                connection.sendall(told.encode() + b"\n" + bytes(num_bytes))


def ask(ip: str, port: int, source: int) -> None:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family) as asking:
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        asking.settimeout(PATIENCE_S)
        began_s = time.monotonic()
        try:
            asking.bind(("", source))
            asking.connect((ip, port))
        except TimeoutError:
            say("silence")
            return
        except ConnectionRefusedError:
            say("refused")
            return
        connected_s = time.monotonic() - began_s
        received = bytearray()
        while part := asking.recv(1 << 20):
            received += part
        seen_ip, seen_port = json.loads(received.partition(b"\n")[0])
        say(json.dumps([seen_ip, seen_port, connected_s, time.monotonic() - began_s]))


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", port, *num_bytes]:
            serve(int(port), int(num_bytes[0]) if num_bytes else 0)
        case ["ask", ip, port, source]:
            ask(ip, int(port), int(source))
