"""Submitting a job to a cluster, and following it."""

import asyncio
import http.server
import os
import re
import shlex
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from tlray import submission
from tlray.cli.commands import expand_config_file, main, parse
from tlray.config import SubmitConfig
from tlray.errors import ConfigError, StoppedError
from tlray.submission import SubmitSummary
from tlray.version import __version__

SERVER = "http://127.0.0.1:8265"
PREDICT = ["--model", "s3://models/first", "--input", "s3://photos", "--output", "s3://labels"]


@pytest.fixture(autouse=True)
def _environment():
    """Restore the environment, through which Ray's client is configured, after each test."""
    before = dict(os.environ)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    yield
    os.environ.clear()
    os.environ.update(before)


def check(options, **more):
    config = SubmitConfig(command="predict", options=tuple(options), address=SERVER, **more)
    submission._check_paths(config, parse("predict", options))


def replace(name, value):
    options = list(PREDICT)
    options[options.index(name) + 1] = value
    return options


def test_paths_that_every_machine_reaches_are_accepted():
    check(PREDICT)
    check(replace("--input", "/shared/photos"))


@pytest.mark.parametrize("name", ["--model", "--input"])
def test_a_path_that_only_this_machine_sees_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name} here/it is on this machine"):
        check(replace(name, "here/it"))


def test_a_relative_output_is_refused():
    with pytest.raises(ConfigError, match=r"--output takes s3://.*got labels, which would be lost"):
        check(replace("--output", "labels"))


def test_relative_paths_are_looked_up_in_the_working_dir(tmp_path):
    (tmp_path / "list.csv").write_text("uri\n")
    check(replace("--input", "list.csv"), working_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=r"--input other.csv is not in --working-dir"):
        check(replace("--input", "other.csv"), working_dir=str(tmp_path))
    with pytest.raises(ConfigError, match="takes a folder"):
        check(PREDICT, working_dir=str(tmp_path / "none"))


@pytest.mark.parametrize("uri", ["https://me:secret@tracking", "https://secret@tracking", "https://t/?token=secret"])
def test_a_password_in_the_mlflow_uri_is_refused(uri):
    options = ["--data", "s3://photos", "--output", "s3://bundle", "--mlflow-uri", uri]
    config = SubmitConfig(command="train", options=tuple(options), address=SERVER)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        submission._check_paths(config, parse("train", options))
    assert "secret" not in str(caught.value)


def test_options_are_checked_before_the_server_is_asked(capsys):
    assert main(["submit", "predict", "--address", SERVER, "--", *PREDICT, "--batch-size", "0"]) == 2
    assert "--batch-size takes" in capsys.readouterr().err
    assert main(["submit", "predict", "--address", "10.0.0.1:6379", "--", *PREDICT]) == 2
    assert "job server" in capsys.readouterr().err
    for more, said in (
        (["--address", "auto"], "--address goes before --"),
        (["--max-cpus", "4"], "--max-engines"),
    ):
        assert main(["submit", "predict", "--address", SERVER, "--", *PREDICT, *more]) == 2
        assert said in capsys.readouterr().err
    assert main(["submit", "predict", "--address", SERVER, "--", *PREDICT[:-2]]) == 2
    assert "--output is needed in a job" in capsys.readouterr().err
    probe = ["--input", "s3://photos", "--output", "s3://labels", "--model", "s3://models/first", "--probe", "8"]
    assert main(["submit", "plan", "--address", SERVER, "--", *probe]) == 2
    assert "--probe measures the machine" in capsys.readouterr().err


def test_the_address_is_needed(monkeypatch, capsys):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert main(["submit", "predict", "--", *PREDICT]) == 2
    assert "RAY_API_SERVER_ADDRESS" in capsys.readouterr().err


def test_a_missing_job_client_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert main(["submit", "predict", "--address", SERVER, "--", *PREDICT]) == 2
    assert "aiohttp is not installed; pip install 'tlray[cluster]'" in capsys.readouterr().err


def test_a_server_that_does_not_answer_is_named(monkeypatch, capsys):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    assert main(["submit", "predict", "--", *PREDICT]) == 1
    assert "no job server answers at http://127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["http://", ""])
@pytest.mark.parametrize(("host", "through"), [("127.0.0.1", False), ("localhost", False), ("jobs.example.org", True)])
def test_a_proxy_is_asked_for_other_machines_only(monkeypatch, capsys, host, through, scheme):
    """No request for this machine goes through it, and the message names it where one did."""
    asked = []

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(502)

        def log_message(self, *_):
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        monkeypatch.setenv("HTTP_PROXY", f"{scheme}me:secret@127.0.0.1:{proxy.server_port}")
        monkeypatch.setenv("http_proxy", os.environ["HTTP_PROXY"])
        assert main(["submit", "predict", "--address", f"http://{host}:9", "--", *PREDICT]) == 1
        proxy.shutdown()
    printed = capsys.readouterr().err
    assert "no job server answers" in printed
    assert "secret" not in printed
    assert (f"asked through the proxy http://***@127.0.0.1:{proxy.server_port}" in printed) == through
    assert bool(asked) == (through and bool(scheme))  # without a scheme, its name and password mislead requests


def test_a_config_file_is_expanded_here(tmp_path):
    path = tmp_path / "predict.yaml"
    path.write_text("model: s3://models/first\nbatch_size: 8\n")
    assert expand_config_file("predict", ["--config", str(path), "--batch-size", "4"]) == [
        *("--model", "s3://models/first"),
        *("--batch-size", "4"),
    ]


def test_a_config_file_behind_the_dashes_is_left_to_the_command(tmp_path):
    path = tmp_path / "submit.yaml"
    path.write_text("address: http://head:8265\n")
    arguments = ["predict", "--config", str(path), "--", "--config", "theirs.yaml"]
    assert expand_config_file("submit", arguments)[:2] == ["--address", "http://head:8265"]
    assert expand_config_file("submit", arguments)[-2:] == ["--config", "theirs.yaml"]


# ---- following ------------------------------------------------------------------------------------------------------


class Client:
    """A client whose log connections each start at the log's beginning; some pause or break."""

    def __init__(self, connections, endings):
        self.connections = iter(connections)
        self.endings = iter(endings)

    async def tail_job_logs(self, job_id):
        for chunk in next(self.connections):
            if isinstance(chunk, Exception):
                raise chunk
            if isinstance(chunk, float):
                await asyncio.sleep(chunk)
            else:
                yield chunk

    def get_job_info(self, job_id):
        ending = next(self.endings)
        if isinstance(ending, Exception):
            raise ending
        status, code, message = ending
        terminal = status in ("SUCCEEDED", "FAILED", "STOPPED")
        known = SimpleNamespace(value=status, is_terminal=lambda: terminal)
        return SimpleNamespace(status=known, driver_exit_code=code, message=message)


def follow(monkeypatch, connections, endings):
    monkeypatch.setattr(submission, "_PAUSE_S", 0.0)
    submitted = SubmitSummary("tlray-predict-1", SERVER, "PENDING", 0)
    return asyncio.run(submission._Follower(Client(connections, endings), "tlray-predict-1", submitted).go())


def test_a_log_is_shown_once_over_connections_that_break(monkeypatch, capsys):
    connections = [["one\n", "tw", RuntimeError("closed")], ["one\ntwo\n", OSError("reset")], ["one\n", "two\nthree\n"]]
    endings = [("RUNNING", None, ""), OSError("reset"), ("SUCCEEDED", 0, "")]
    assert follow(monkeypatch, connections, endings) == ("SUCCEEDED", 0)
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


@pytest.mark.parametrize(
    ("ending", "expected"),
    [(("FAILED", 2, "exit code 2"), 2), (("FAILED", -9, "killed"), 1), (("FAILED", None, "no node"), 1)],
)
def test_a_jobs_exit_code_is_passed_on(monkeypatch, capsys, ending, expected):
    assert follow(monkeypatch, [["a\n"]], [ending]) == ("FAILED", expected)
    assert ("tlray-predict-1 failed: " in capsys.readouterr().err) is (ending[1] != 2)


def test_a_stopped_job_has_exit_code_1(monkeypatch):
    assert follow(monkeypatch, [[]], [("STOPPED", None, "stopped")]) == ("STOPPED", 1)


def test_a_log_that_ends_early_is_continued(monkeypatch, capsys):
    endings = [("RUNNING", None, ""), ("SUCCEEDED", 0, "")]
    assert follow(monkeypatch, [["a\n"], ["a\n", "b\n"]], endings)[1] == 0
    assert capsys.readouterr().out == "a\nb\n"


def test_one_failed_request_after_a_long_silence_is_retried(monkeypatch, capsys):
    monkeypatch.setattr(submission, "_MAX_SILENCE_S", 0.2)
    connections = [["a\n", 0.4, OSError("reset")], ["a\n", "b\n"]]
    assert follow(monkeypatch, connections, [OSError("refused"), ("SUCCEEDED", 0, "")]) == ("SUCCEEDED", 0)
    assert capsys.readouterr().out == "a\nb\n"


def test_a_job_ends_even_if_its_log_is_unavailable(monkeypatch):
    assert follow(monkeypatch, [[RuntimeError("no websockets here")]], [("SUCCEEDED", 0, "")]) == ("SUCCEEDED", 0)


def test_a_dead_connection_is_given_up(monkeypatch, capsys):
    monkeypatch.setattr(submission, "_QUIET_S", 0.01)
    never = asyncio.sleep

    class Hanging(Client):
        async def tail_job_logs(self, job_id):
            yield "a\n"
            await never(60)

    monkeypatch.setattr(submission, "_PAUSE_S", 0.0)
    client = Hanging([], [("RUNNING", None, ""), ("SUCCEEDED", 0, "")])
    submitted = SubmitSummary("tlray-predict-1", SERVER, "PENDING", 0)
    assert asyncio.run(submission._Follower(client, "tlray-predict-1", submitted).go()) == ("SUCCEEDED", 0)
    assert capsys.readouterr().out == "a\n"


# ---- submitting -----------------------------------------------------------------------------------------------------


class Server:
    """A job server with given answers to submissions; `known` is None if it knows the job, else the error."""

    def __init__(self, answers, known):
        self.answers = iter(answers)
        self.known = known

    def submit_job(self, **request):
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer

    def get_job_info(self, job_id):
        if isinstance(self.known, Exception):
            raise self.known


def start(monkeypatch, answers, known):
    monkeypatch.setattr(submission, "_PAUSE_S", 0.0)
    submission._start(Server(answers, known), SubmitSummary("tlray-predict-1", SERVER, "PENDING", 0), {})


def test_a_server_that_is_not_ready_is_retried(monkeypatch):
    start(monkeypatch, [RuntimeError("No available agent to submit job"), None], RuntimeError("does not exist"))


def test_a_job_whose_response_was_lost_is_followed(monkeypatch):
    start(monkeypatch, [OSError("reset")], None)


def test_a_refused_job_says_why(monkeypatch):
    with pytest.raises(StoppedError, match="did not take the job: too large"):
        start(monkeypatch, [ValueError("too large")], RuntimeError("does not exist"))


def test_a_server_lost_while_it_took_the_job_is_an_error_with_the_command_to_run(monkeypatch):
    with pytest.raises(StoppedError, match=r"was lost while it took the job .* ray job logs"):
        start(monkeypatch, [OSError("reset")], OSError("refused"))


def test_a_server_that_stops_answering_is_an_error_with_the_command_to_run(monkeypatch):
    monkeypatch.setattr(submission, "_MAX_SILENCE_S", 0.05)
    with pytest.raises(StoppedError, match=r"ray job logs --address .* --follow tlray-predict-1"):
        follow(monkeypatch, [[OSError("refused")]] * 100_000, [OSError("refused")] * 100_000)


# ---- the whole of it ------------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch):
    """A job server that takes jobs; `requests` are what it got, `said` the printed lines."""
    state = SimpleNamespace(requests=[], said=[], error=None, known=True)

    class Accepting(Client):
        def submit_job(self, **request):
            state.requests.append(request)
            if state.error is not None:
                raise state.error

        def get_job_info(self, job_id):
            assert job_id == state.requests[0]["submission_id"]
            if not state.known:
                raise RuntimeError("does not exist")
            return super().get_job_info(job_id)

    def connect(address):
        assert address == SERVER
        return Accepting([["a line\n"]], [("SUCCEEDED", 0, "")])

    monkeypatch.setattr(submission, "_connect", connect)
    monkeypatch.setattr(submission, "say", state.said.append)
    return state


def submit(**more):
    config = SubmitConfig(command="predict", options=tuple(PREDICT), address=f"{SERVER}/", **more)
    return submission.submit(config, parse("predict", PREDICT), PREDICT)


def test_a_job_is_the_command_with_this_tlray_and_the_working_dir(server, tmp_path, capsys):
    summary = submit(working_dir=str(tmp_path))
    (request,) = server.requests
    assert request["entrypoint"] == f"python -u -m tlray predict {' '.join(PREDICT)}"
    assert request["metadata"] == {"tlray": __version__, "command": "predict"}
    assert request["runtime_env"] == {
        "py_modules": [str(Path(submission.__file__).parent)],
        "excludes": ["__pycache__", "*.pyc"],
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"},
        "working_dir": str(tmp_path),
    }
    assert re.fullmatch(r"tlray-predict-\d{8}-\d{6}-[0-9a-f]{4}", summary.job_id)
    assert (summary.status, summary.exit_code, summary.address) == ("SUCCEEDED", 0, SERVER)
    assert server.said == [f"submitted {summary.job_id} to {SERVER}"]
    assert capsys.readouterr().out == "a line\n"


def test_options_reach_the_job_as_single_arguments(server):
    options = [*PREDICT[:2], "--input", "s3://photos/a b", *PREDICT[4:]]
    submission.submit(
        SubmitConfig(command="predict", options=tuple(options), address=SERVER, detach=True),
        parse("predict", options),
        options,
    )
    assert shlex.split(server.requests[0]["entrypoint"])[5:] == options
    assert "working_dir" not in server.requests[0]["runtime_env"]


def test_a_detached_job_is_not_followed(server, capsys):
    summary = submit(detach=True)
    assert (summary.status, summary.exit_code) == ("PENDING", 0)
    assert summary.follow_command == f"ray job logs --address {SERVER} --follow {summary.job_id}"
    assert summary.stop_command == f"ray job stop --address {SERVER} {summary.job_id}"
    assert capsys.readouterr().out == ""


def test_ctrl_c_while_a_job_is_followed_leaves_it_running(server, monkeypatch):
    async def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(submission._Follower, "go", interrupt)
    summary = submit()
    assert (summary.status, summary.exit_code) == ("RUNNING", 130)


def test_ctrl_c_while_a_job_is_submitted_reports_a_job_that_exists(server):
    server.error = KeyboardInterrupt()
    summary = submit()
    assert (summary.status, summary.exit_code) == ("PENDING", 130)
    server.requests.clear()
    server.known = False
    with pytest.raises(KeyboardInterrupt):
        submit()


def test_a_job_server_comes_from_the_option_then_the_variable(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265/")
    assert submission._find_address("http://other:8265/") == "http://other:8265"
    assert submission._find_address(None) == "http://head:8265"


def test_a_token_is_found_in_the_environment_or_at_home(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not submission._has_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/run/token")
    assert submission._has_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").touch()
    assert submission._has_token()


def test_an_archive_member_is_looked_up_by_its_archive(tmp_path):
    (tmp_path / "photos.tar").touch()
    (tmp_path / "a#b.jpg").touch()
    for uri in ("photos.tar#in/a.jpg", "a#b.jpg"):
        check(replace("--input", uri), working_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=r"--input other.tar#a.jpg is not in --working-dir"):
        check(replace("--input", "other.tar#a.jpg"), working_dir=str(tmp_path))
