"""A proxy before hostprep that runs a command between hostprep's answer to Mount and the engine's reading of it.

python swapping.py LISTEN HOSTPREP COMMAND...
"""

from __future__ import annotations

import http.client
import http.server
import os
import socket
import socketserver
import subprocess
import sys

listen, hostprep, *command = sys.argv[1:]


class Upstream(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(hostprep)


class Proxy(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        upstream = Upstream("localhost")
        upstream.request("POST", self.path, self.rfile.read(int(self.headers.get("Content-Length", 0))))
        answer = upstream.getresponse()
        body = answer.read()
        if self.path == "/VolumeDriver.Mount" and answer.status == 200:
            subprocess.run(command, check=True)
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


if __name__ == "__main__":
    if os.path.exists(listen):
        os.unlink(listen)
    Server(listen, Proxy).serve_forever()
