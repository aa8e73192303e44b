import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tlray.cluster import spot

TOKEN = "t0ken"


class Metadata(BaseHTTPRequestHandler):
    """AWS's instance metadata service, version 2, as far as spot notices need it."""

    notice = None
    """(HTTP status, body) of `spot/instance-action`."""

    def do_PUT(self):
        assert self.path == "/latest/api/token"
        assert int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) > 0
        self.reply(200, TOKEN)

    def do_GET(self):
        assert self.path == "/latest/meta-data/spot/instance-action"
        if self.headers["X-aws-ec2-metadata-token"] != TOKEN:
            self.reply(401, "")
        else:
            self.reply(*self.notice)

    def reply(self, status, text):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def metadata(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr(Metadata, "notice", (404, "Not Found"))
    yield Metadata
    server.shutdown()
    thread.join()
    server.server_close()


def announce(seconds):
    taken = datetime.now(UTC) + timedelta(seconds=seconds)
    return 200, json.dumps({"action": "terminate", "time": taken.strftime("%Y-%m-%dT%H:%M:%SZ")})


def test_a_notice_gives_the_seconds_that_are_left(metadata):
    assert spot.read_notice() is None
    metadata.notice = announce(120)
    assert 110 < spot.read_notice() <= 120
    metadata.notice = announce(-5)
    assert spot.read_notice() == 0


def test_a_service_that_fails_is_no_notice(metadata):
    metadata.notice = (500, "")
    with pytest.raises(OSError, match="500"):
        spot.read_notice()


def test_the_machine_is_drained_once_the_notice_comes_and_ray_takes_it(metadata, monkeypatch, capsys):
    """Before: nothing is announced, the service fails, its answer makes no sense, Ray does not run."""
    notices = [(404, ""), (500, ""), (200, "{"), (200, "{}"), announce(100), announce(90)]
    drained = []

    def sleep(_):
        metadata.notice = notices.pop(0)

    def drain_this_node(reason, deadline_s):
        drained.append(deadline_s)
        if len(drained) == 1:
            raise ConnectionError("no Ray")

    monkeypatch.setattr(spot.time, "sleep", sleep)
    monkeypatch.setattr(spot, "drain_this_node", drain_this_node)
    spot.watch()
    assert [round(seconds, -1) for seconds in drained] == [100, 90]
    printed = capsys.readouterr().out
    assert printed.count("the metadata service cannot be read") == 3
    assert "Ray cannot drain it: no Ray" in printed
    assert not notices
