"""A real S3 API on this machine, in a process of its own."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

S3RVER = Path(__file__).parents[2] / ".s3rver" / "node_modules" / ".bin" / "s3rver"
"""A server that is not moto, where `make s3rver` has installed it."""


@contextlib.contextmanager
def serve(bind: str = "127.0.0.1", *, atomic: bool = False) -> Iterator[tuple[dict[str, str], Any]]:
    """Yields the environment that points at moto's server, and a client.

    `bind` 0.0.0.0 lets other networks reach it; `atomic` makes conditional writes atomic, which moto's own are not.
    """
    port = find_free_port()
    module = ["tests.faults.atomic_s3", str(port)] if atomic else ["moto.server", "-H", bind, "-p", str(port)]
    with _start([sys.executable, "-m", *module], port, "test") as served:
        yield served


@contextlib.contextmanager
def serve_s3rver(folder: Path) -> Iterator[tuple[dict[str, str], Any]]:
    """Yields the same for s3rver, which keeps its objects in a folder, and ignores conditions of writes."""
    port = find_free_port()
    options = ["--directory", str(folder), "--address", "127.0.0.1", "--port", str(port), "--no-vhost-buckets"]
    # it makes the tokens of its listings by DES
    with _start([str(S3RVER), *options], port, "S3RVER", NODE_OPTIONS="--openssl-legacy-provider") as served:
        yield served


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextlib.contextmanager
def _start(command: list[str], port: int, key: str, **variables: str) -> Iterator[tuple[dict[str, str], Any]]:
    import boto3
    import botocore.exceptions

    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **variables}
    )
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": key,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=key,
        aws_secret_access_key=key,
        region_name="us-east-1",
    )
    try:
        for _ in range(100):
            try:
                client.list_buckets()
                break
            except botocore.exceptions.BotoCoreError:
                time.sleep(0.2)
        else:
            raise TimeoutError("the S3 server did not start")
        yield environment, client
    finally:
        server.terminate()
        server.wait(10)
