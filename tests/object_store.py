"""An S3 server in a process of its own, and a proxy in front of it that injects faults."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

BUCKET = "bucket"
SECRET = "wJalrXUtnFEMIsecret"
_SERVER = """
import sys, threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Runs a server with one bucket; yields the environment variables of its clients."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            port = int(process.stdout.readline())
            environment = client_environment(port)
            import pyarrow.fs

            store = pyarrow.fs.S3FileSystem(
                access_key="AKIAEXAMPLE",
                secret_key=SECRET,
                region="us-east-1",
                endpoint_override=environment["AWS_ENDPOINT_URL"],
                allow_bucket_creation=True,
                request_timeout=60,  # the first request makes the server import much
            )
            store.create_dir(BUCKET)
            yield environment
        finally:
            process.kill()


def client_environment(port: int) -> dict[str, str]:
    """Returns the environment variables with which clients reach a server on a local port."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@dataclass
class Faults:
    """What the proxy does to requests; every `every`-th one is hit.

    Attributes:
        kind: "" for none, "error" to answer 503, "cut" to close in the middle of the answer, "stall" to never answer.
        requests, hit: number of requests seen, and of those that were hit.
    """

    kind: str = ""
    every: int = 10
    requests: int = 0
    hit: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> str:
        with self.lock:
            self.requests += 1
            if not self.kind or self.requests % self.every:
                return ""
            self.hit += 1
            return self.kind


@contextmanager
def proxy(target: dict[str, str], faults: Faults) -> Iterator[dict[str, str]]:
    """Runs a proxy in front of a server; yields the environment variables of its clients.

    Each connection serves one request: the answer is forwarded with `Connection: close`.
    """
    upstream = int(target["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener, upstream, faults), daemon=True).start()
        yield client_environment(listener.getsockname()[1])


def _accept(listener: socket.socket, upstream: int, faults: Faults) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=(client, upstream, faults), daemon=True).start()


def _serve(client: socket.socket, upstream: int, faults: Faults) -> None:
    with client:
        try:
            head = b""
            while b"\r\n\r\n" not in head:
                block = client.recv(65536)
                if not block:
                    return
                head += block
            kind = faults.next()
            if kind == "stall":
                time.sleep(600)
            if kind == "error":
                client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", upstream)) as server:
                server.sendall(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
                threading.Thread(target=_copy, args=(client, server), daemon=True).start()
                _answer(server, client, cut=kind == "cut")
        except OSError:
            pass
        finally:
            with suppress(OSError):  # closing alone would wait for the thread that still reads
                client.shutdown(socket.SHUT_RDWR)


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while block := source.recv(65536):
            target.sendall(block)
    except OSError:
        pass


def _answer(server: socket.socket, client: socket.socket, *, cut: bool) -> None:
    content = b""
    while block := server.recv(65536):
        if cut:
            content += block
        else:
            client.sendall(block)
    if cut:  # half of the body, or of the head where there is no body
        head, _, body = content.partition(b"\r\n\r\n")
        client.sendall(head + b"\r\n\r\n" + body[: len(body) // 2] if body else head[: len(head) // 2])


def use(monkeypatch, environment: dict[str, str], cache: os.PathLike) -> None:
    """Sets the variables of a client in this process, with a cache folder and few seconds for retries."""
    for name, value in (environment | {"RECIPE_CACHE_DIR": str(cache), "RECIPE_REMOTE_DEADLINE": "20"}).items():
        monkeypatch.setenv(name, value)
