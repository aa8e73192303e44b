"""A real S3 API on this machine, in a process of its own."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def serve(bind: str = "127.0.0.1", *, atomic: bool = False) -> Iterator[tuple[dict[str, str], Any]]:
    """Yields the environment that points at it, and a client.

    `bind` 0.0.0.0 lets other networks reach it; `atomic` makes conditional writes atomic, which moto's own are not.
    """
    import boto3
    import botocore.exceptions

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["tests.faults.atomic_s3", str(port)] if atomic else ["moto.server", "-H", bind, "-p", str(port)]
    server = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
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
