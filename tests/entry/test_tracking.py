"""What MLflow's client sends to a tracking server for one training."""

import http.server
import json
import subprocess
import sys
import threading
from typing import ClassVar

LOG = """
import sys
import numpy as np
from tests.factories import make_epoch
from tlray.config import TrainConfig
from tlray.metrics.classification import measure
from tlray.model.manifest import Metrics, RoleCounts
from tlray.training.results import TrainSummary
from tlray.training.results import log_run
history = [make_epoch(epoch, loss=1 / epoch, val_loss=None, val_accuracy=None, images=9) for epoch in (1, 2)]
metrics = Metrics(test=measure(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 1]), ("a", "b")))
counts = RoleCounts(train=9, validation=0, test=2)
summary = TrainSummary("bundle", "f" * 64, ("a", "b"), counts, [], history, metrics, {"phase 1": 2.0}, None, [], False,
    {"lr_head": 0.001, "head_epochs": 5})
log_run(TrainConfig(data="photos", output="bundle", mlflow_uri=sys.argv[1]), summary)
"""


class Tracking(http.server.BaseHTTPRequestHandler):
    """Says yes to everything and remembers it."""

    bodies: ClassVar[dict[str, list[dict]]] = {}

    def answer(self):
        call = self.path.partition("?")[0].rpartition("mlflow/")[2]
        length = int(self.headers.get("Content-Length") or 0)
        self.bodies.setdefault(call, []).append(json.loads(self.rfile.read(length) or b"{}"))
        info = {"run_id": "r", "run_uuid": "r", "experiment_id": "1", "status": "RUNNING", "lifecycle_stage": "active"}
        experiment = {"experiment_id": "1", "name": "tlray", "lifecycle_stage": "active"}
        data = json.dumps({"experiment": experiment, "run": {"info": info, "data": {}}, "run_info": info}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = answer  # noqa: N815

    def log_message(self, *_):
        """Say nothing."""


def test_parameters_epochs_and_results_are_logged():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Tracking) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [sys.executable, "-c", LOG, f"http://127.0.0.1:{server.server_port}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    batches = Tracking.bodies["runs/log-batch"]
    params = {item["key"]: item["value"] for batch in batches for item in batch.get("params", [])}
    assert (params["data"], params["lr_head"], params["head_epochs"]) == ("photos", "0.001", "5")
    metrics = [(item["key"], item["step"], item["value"]) for batch in batches for item in batch.get("metrics", [])]
    assert {("loss", 1, 1.0), ("loss", 2, 0.5), ("images", 2, 9), ("seconds phase 1", 0, 2.0)} <= set(metrics)
    assert not any(name == "val_loss" for name, _, _ in metrics)
    assert Tracking.bodies["runs/log-metric"][0]["value"] == 0.5
    tags = {item["key"]: item["value"] for batch in batches for item in batch.get("tags", [])}
    assert tags == {"model_id": "f" * 64, "bundle": "bundle"}
