"""Tell Ray when AWS is about to take this spot machine away: `python -m tlray.cluster.spot`, beside Ray on each worker.

The instance metadata service announces it two minutes ahead. Ray then drains the machine: it places nothing new there,
and what predicts ends what it has in hand and starts elsewhere. In Kubernetes nothing is needed: a pod that gets
SIGTERM is drained by Ray itself.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime

from tlray.cluster.ray_private import drain_this_node

_ENDPOINT = "http://169.254.169.254"
_TOKEN_LIFE_S = 21_600
_INTERVAL_S = 5.0
_TIMEOUT_S = 5.0


def read_notice() -> float | None:
    """Return the seconds until the machine is taken away; None if that is not announced.

    The notice is at `spot/instance-action` of the instance metadata service (version 2), whose address
    `AWS_EC2_METADATA_SERVICE_ENDPOINT` can change.

    Raises:
        OSError: the service does not answer.
    """
    try:
        token = _request("PUT", "api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_LIFE_S)})
        answer = _request("GET", "meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    taken = datetime.fromisoformat(json.loads(answer)["time"])
    return max(0.0, (taken - datetime.now(UTC)).total_seconds())


def watch() -> None:
    """Wait for the notice, and drain the machine."""
    while True:
        try:
            deadline_s = read_notice()
        except (OSError, ValueError, KeyError) as error:
            print(f"the metadata service cannot be read: {error}", flush=True)
            deadline_s = None
        if deadline_s is not None:
            print(f"this machine is taken away in {deadline_s:.0f} s", flush=True)
            try:
                drain_this_node("AWS takes the spot machine away", deadline_s)
            except Exception as error:  # Ray has several; the next look tries again
                print(f"Ray cannot drain it: {error}", flush=True)
            else:
                return
        time.sleep(_INTERVAL_S)


def _request(method: str, path: str, headers: dict[str, str]) -> str:
    endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or _ENDPOINT
    request = urllib.request.Request(f"{endpoint.rstrip('/')}/latest/{path}", method=method, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy reaches a link-local address
    with opener.open(request, timeout=_TIMEOUT_S) as response:
        text: str = response.read().decode()
    return text


if __name__ == "__main__":
    watch()
