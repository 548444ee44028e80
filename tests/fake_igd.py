"""A router for tests: answers the search by multicast and opens ports over HTTP, as an IGD does."""

from __future__ import annotations

import fcntl
import re
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

GROUP, SEARCH_PORT = "239.255.255.250", 1900
LOOK_S = 0.1
"""How often the threads look whether it is over."""
LOOPBACK = "127.0.0.1"
DEVICE = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
SERVICE = "urn:schemas-upnp-org:service:WANIPConnection:1"
DESCRIPTION = f"""<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0">
<specVersion><major>1</major><minor>0</minor></specVersion>
<device><deviceType>{DEVICE}</deviceType><friendlyName>fake</friendlyName>
<UDN>uuid:1</UDN><deviceList>
<device><deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType><UDN>uuid:2</UDN>
<serviceList><service>
<serviceType>urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1</serviceType>
<serviceId>urn:upnp-org:serviceId:WANCommonIFC1</serviceId>
<controlURL>/common</controlURL><eventSubURL>/e</eventSubURL><SCPDURL>/s</SCPDURL>
</service></serviceList><deviceList>
<device><deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType><UDN>uuid:3</UDN>
<serviceList><service><serviceType>{SERVICE}</serviceType>
<serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId>
<controlURL>/control</controlURL><eventSubURL>/e</eventSubURL><SCPDURL>/s</SCPDURL>
</service></serviceList></device></deviceList></device></deviceList></device></root>"""


class FakeRouter:
    """What it was asked, and how it answers."""

    def __init__(self) -> None:
        self.host = "203.0.113.9"
        self.taken: set[int] = set()
        """Outer ports of somebody else."""
        self.knows_leases = True
        self.open: dict[int, tuple[str, int, int]] = {}
        """Outer port: inner host, inner port, lease in seconds."""
        self.closed: list[int] = []
        self.hangs = False
        self._over = threading.Event()

    def answer(self, action: str, fields: dict[str, str]) -> tuple[int, str]:
        """HTTP status and the body's inside."""
        if self.hangs:
            self._over.wait()
        match action:
            case "GetExternalIPAddress":
                return 200, f"<NewExternalIPAddress>{self.host}</NewExternalIPAddress>"
            case "GetStatusInfo":
                return 200, (
                    "<NewConnectionStatus>Connected</NewConnectionStatus>"
                    "<NewLastConnectionError>ERROR_NONE</NewLastConnectionError>"
                    "<NewUptime>9</NewUptime>"
                )
            case "AddPortMapping":
                return self._add(fields)
            case "DeletePortMapping":
                port = int(fields["NewExternalPort"])
                self.closed.append(port)
                del self.open[port]
                return 200, ""
        return 500, error(401, "Invalid Action")

    def _add(self, fields: dict[str, str]) -> tuple[int, str]:
        port, lease = int(fields["NewExternalPort"]), int(fields["NewLeaseDuration"])
        if port in self.taken:
            return 500, error(718, "ConflictInMappingEntry")
        if lease and not self.knows_leases:
            return 500, error(725, "OnlyPermanentLeasesSupported")
        self.open[port] = (fields["NewInternalClient"], int(fields["NewInternalPort"]), lease)
        return 200, ""

    @contextmanager
    def running(self) -> Iterator[None]:
        """On loopback; everything has ended when this returns."""
        router = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._say(200, DESCRIPTION)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                action = self.headers["SOAPAction"].strip('"').rpartition("#")[2]
                fields = dict(re.findall(r"<(New\w+)>([^<]*)</", body))
                status, inside = router.answer(action, fields)
                if status == 200:
                    inside = (
                        f'<u:{action}Response xmlns:u="{SERVICE}">{inside}</u:{action}Response>'
                    )
                self._say(
                    status,
                    '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/'
                    f'envelope/"><s:Body>{inside}</s:Body></s:Envelope>',
                )

            def _say(self, status: int, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "text/xml")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *args: object) -> None: ...

        with (
            alone(),
            ThreadingHTTPServer((LOOPBACK, 0), Handler) as server,
            search_socket() as search,
        ):
            url = f"http://{LOOPBACK}:{server.server_port}/desc.xml"
            threads = [
                threading.Thread(target=server.serve_forever, args=(0.05,)),
                threading.Thread(target=answer_searches, args=(search, url, self._over)),
            ]
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                self._over.set()
                server.shutdown()
                for thread in threads:
                    thread.join()


@contextmanager
def alone() -> Iterator[None]:
    """One router on this machine at a time: two would answer each other's tests."""
    with (Path(tempfile.gettempdir()) / "shoal-fake-router.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def error(code: int, text: str) -> str:
    return (
        "<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>"
        f'<UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>{code}</errorCode>'
        f"<errorDescription>{text}</errorDescription></UPnPError></detail></s:Fault>"
    )


def search_socket() -> socket.socket:
    """Hears searches on loopback.  Raises OSError where there is no multicast."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("", SEARCH_PORT))
        group = struct.pack("4s4s", socket.inet_aton(GROUP), socket.inet_aton(LOOPBACK))
        made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    except OSError:
        made.close()
        raise
    return made


def answer_searches(search: socket.socket, url: str, over: threading.Event) -> None:
    """Answer until it is over."""
    search.settimeout(LOOK_S)
    while not over.is_set():
        try:
            question, asker = search.recvfrom(2048)
        except TimeoutError:
            continue
        if asker[0] == LOOPBACK and b"M-SEARCH" in question:
            answer = (
                f"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=100\r\nST: {DEVICE}\r\n"
                f"USN: uuid:1::{DEVICE}\r\nEXT:\r\nSERVER: fake\r\nLOCATION: {url}\r\n\r\n"
            )
            search.sendto(answer.encode(), asker)
