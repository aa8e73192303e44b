"""Objects a second from a local S3 API that answers after 20 ms: tlray's fetching, boto3, pyarrow.

python tests/benchmarks/fetch.py [--objects 4000] [--size 60000] [--in-flight 64] [--latency-ms 20]

Each client runs in a process of its own, one after the other, against the same server; CPU is the client's alone.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import tyro

BUCKET = "bench"


@dataclass(frozen=True)
class Options:
    """What is fetched."""

    objects: int = 4000
    size: int = 60_000
    in_flight: int = 64
    latency_ms: float = 20.0
    clients: tuple[str, ...] = ("tlray", "boto3", "pyarrow")
    client: str | None = None
    """Run this one alone in this process (what the benchmark calls itself with)."""


class Server(asyncio.Protocol):
    """Answers every GET and HEAD with the same body, some milliseconds later."""

    def __init__(self, options: Options) -> None:
        self._latency_s = options.latency_ms / 1000
        self._body = os.urandom(options.size)
        self._buffer = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            asyncio.get_running_loop().call_later(self._latency_s, self._answer, head)

    def _answer(self, head: bytes) -> None:
        size, status, extra = len(self._body), b"200 OK", b""
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"range:"):
                status = b"206 Partial Content"
                first, _, last = line.partition(b"=")[2].partition(b"-")
                extra = b"Content-Range: bytes %s-%s/%d\r\n" % (first, last or b"%d" % (size - 1), size)
        answer = (
            b'HTTP/1.1 %s\r\nContent-Length: %d\r\nETag: "00"\r\nContent-Type: image/jpeg\r\n%s'
            b"Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\nAccept-Ranges: bytes\r\n\r\n" % (status, size, extra)
        )
        if not self._transport.is_closing():
            self._transport.write(answer if head.startswith(b"HEAD") else answer + self._body)


def serve(options: Options, port: Any) -> None:
    """Run the server for ever; says its port."""

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Server(options), "127.0.0.1", 0, backlog=1024)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def fetch_tlray(keys: list[str], options: Options) -> int:
    """As a labelling run does."""
    from tlray import storage

    requests = (storage.Request(f"s3://{BUCKET}/{key}", size=options.size) for key in keys)
    return sum(len(fetched.data) for fetched in storage.fetch_many(requests) if isinstance(fetched.data, bytes))


def fetch_boto3(keys: list[str], options: Options) -> int:
    """One client, a thread for each request in flight."""
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", config=Config(max_pool_connections=options.in_flight))
    with ThreadPoolExecutor(options.in_flight) as pool:
        return sum(
            pool.map(lambda key: len(client.get_object(Bucket=BUCKET, Key=key)["Body"].read()), keys),
        )


def fetch_pyarrow(keys: list[str], options: Options) -> int:
    """Arrow's own S3 client, a thread for each request in flight."""
    from pyarrow import fs, set_io_thread_count

    set_io_thread_count(options.in_flight)
    system = fs.S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"], region="us-east-1")

    def read(key: str) -> int:
        with system.open_input_stream(f"{BUCKET}/{key}") as stream:
            return len(stream.read())

    with ThreadPoolExecutor(options.in_flight) as pool:
        return sum(pool.map(read, keys))


def run_client(options: Options) -> dict[str, float]:
    """Rate and CPU of one client, past a first few requests."""
    fetch = {"tlray": fetch_tlray, "boto3": fetch_boto3, "pyarrow": fetch_pyarrow}[str(options.client)]
    fetch([f"warm/{index}" for index in range(options.in_flight)], options)
    keys = [f"images/{index:06d}.jpg" for index in range(options.objects)]
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    num_bytes = fetch(keys, options)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF)
    if num_bytes != options.objects * options.size:
        raise SystemExit(f"{options.client} got {num_bytes:,} bytes, not {options.objects * options.size:,}")
    cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"objects_per_s": options.objects / seconds, "cpu_ms_per_object": 1000 * cpu_s / options.objects}


def main(options: Options) -> None:
    """Run the clients one after the other, print the table."""
    if options.client is not None:
        print(json.dumps(run_client(options)))
        return
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(options, theirs), daemon=True)
    server.start()
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ours.recv()}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    print(f"{'':<10}{'objects/s':>12}{'CPU ms each':>14}{'against boto3':>16}")
    rows = {}
    for client in options.clients:
        command = [sys.executable, __file__, "--client", client]
        for name in ("objects", "size", "in_flight", "latency_ms"):
            command += ["--" + name.replace("_", "-"), str(getattr(options, name))]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        rows[client] = json.loads(done.stdout)
    for client, row in rows.items():
        ratio = row["objects_per_s"] / rows["boto3"]["objects_per_s"] if "boto3" in rows else float("nan")
        print(f"{client:<10}{row['objects_per_s']:>12,.0f}{row['cpu_ms_per_object']:>14.2f}{ratio:>16.2f}")


if __name__ == "__main__":
    main(tyro.cli(Options))
