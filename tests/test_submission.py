"""What is sent to a cluster, and how its job is followed."""

import asyncio
import os
import sys
from types import SimpleNamespace

import pytest

from tlray import submission
from tlray.cli.commands import expand_config_file, main, parse
from tlray.config import SubmitConfig
from tlray.errors import ConfigError, StoppedError
from tlray.submission import SubmitSummary

SERVER = "http://127.0.0.1:8265"
PREDICT = ["--model", "s3://models/first", "--input", "s3://photos", "--output", "s3://labels"]


@pytest.fixture(autouse=True)
def _environment():
    """What Ray's client is told by the environment ends with each test."""
    before = dict(os.environ)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    yield
    os.environ.clear()
    os.environ.update(before)


def check(options, **more):
    config = SubmitConfig(command="predict", options=tuple(options), address=SERVER, **more)
    submission._check_places(config, parse("predict", options))


def replace(name, value):
    options = list(PREDICT)
    options[options.index(name) + 1] = value
    return options


def test_what_every_machine_reaches_is_sent():
    check(PREDICT)
    check(replace("--input", "/shared/photos"))


@pytest.mark.parametrize("name", ["--model", "--input"])
def test_what_only_this_machine_sees_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name} here/it lies on this machine"):
        check(replace(name, "here/it"))


def test_a_relative_output_would_be_lost():
    with pytest.raises(ConfigError, match=r"--output takes s3://.*got labels, which would be lost"):
        check(replace("--output", "labels"))


def test_what_travels_along_is_looked_up_there(tmp_path):
    (tmp_path / "list.csv").write_text("uri\n")
    check(replace("--input", "list.csv"), working_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=r"--input other.csv is not in --working-dir"):
        check(replace("--input", "other.csv"), working_dir=str(tmp_path))
    with pytest.raises(ConfigError, match="takes a folder"):
        check(PREDICT, working_dir=str(tmp_path / "none"))


@pytest.mark.parametrize("uri", ["https://me:secret@tracking", "https://secret@tracking", "https://t/?token=secret"])
def test_a_password_would_stand_in_the_jobs_record(uri):
    options = ["--data", "s3://photos", "--output", "s3://bundle", "--mlflow-uri", uri]
    config = SubmitConfig(command="train", options=tuple(options), address=SERVER)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        submission._check_places(config, parse("train", options))
    assert "secret" not in str(caught.value)


def test_options_are_checked_before_anything_is_asked(capsys):
    assert main(["submit", "predict", "--address", SERVER, "--", *PREDICT, "--batch-size", "0"]) == 2
    assert "--batch-size takes" in capsys.readouterr().err
    assert main(["submit", "predict", "--address", "10.0.0.1:6379", "--", *PREDICT]) == 2
    assert "job server" in capsys.readouterr().err
    for more, said in (
        (["--address", "auto"], "stands before --"),
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


def test_the_job_client_is_asked_for_by_name(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert main(["submit", "predict", "--address", SERVER, "--", *PREDICT]) == 2
    assert "aiohttp is not installed; pip install 'tlray[cluster]'" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_named(monkeypatch, capsys):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    assert main(["submit", "predict", "--", *PREDICT]) == 1
    assert "no job server answers at http://127.0.0.1:9" in capsys.readouterr().err


def test_a_config_file_is_read_here(tmp_path):
    path = tmp_path / "predict.yaml"
    path.write_text("model: s3://models/first\nbatch_size: 8\n")
    assert expand_config_file("predict", ["--config", str(path), "--batch-size", "4"]) == [
        *("--model", "s3://models/first"),
        *("--batch-size", "8"),
        *("--batch-size", "4"),
    ]


def test_a_jobs_own_config_is_left_for_it(tmp_path):
    path = tmp_path / "submit.yaml"
    path.write_text("address: http://head:8265\n")
    arguments = ["predict", "--config", str(path), "--", "--config", "theirs.yaml"]
    assert expand_config_file("submit", arguments)[:2] == ["--address", "http://head:8265"]
    assert expand_config_file("submit", arguments)[-2:] == ["--config", "theirs.yaml"]


# ---- following ------------------------------------------------------------------------------------------------------


class Client:
    """A job whose log comes in connections, each from the log's beginning; some pause or break."""

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


def test_a_stopped_job_is_no_success(monkeypatch):
    assert follow(monkeypatch, [[]], [("STOPPED", None, "stopped")]) == ("STOPPED", 1)


def test_a_log_that_ends_early_is_taken_up_again(monkeypatch, capsys):
    endings = [("RUNNING", None, ""), ("SUCCEEDED", 0, "")]
    assert follow(monkeypatch, [["a\n"], ["a\n", "b\n"]], endings)[1] == 0
    assert capsys.readouterr().out == "a\nb\n"


def test_one_broken_connection_behind_a_long_quiet_is_no_end(monkeypatch, capsys):
    monkeypatch.setattr(submission, "_MAX_SILENCE_S", 0.2)
    connections = [["a\n", 0.4, OSError("reset")], ["a\n", "b\n"]]
    assert follow(monkeypatch, connections, [OSError("refused"), ("SUCCEEDED", 0, "")]) == ("SUCCEEDED", 0)
    assert capsys.readouterr().out == "a\nb\n"


def test_a_log_that_cannot_be_had_does_not_hide_how_the_job_ended(monkeypatch):
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


# ---- handing in -----------------------------------------------------------------------------------------------------


class Server:
    """A job server that answers a submission so, and knows the job or not."""

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


def test_a_server_that_has_just_come_up_is_asked_again(monkeypatch):
    start(monkeypatch, [RuntimeError("No available agent to submit job"), None], RuntimeError("does not exist"))


def test_a_job_whose_answer_was_lost_is_followed(monkeypatch):
    start(monkeypatch, [OSError("reset")], None)


def test_a_job_that_is_not_taken_says_why(monkeypatch):
    with pytest.raises(StoppedError, match="did not take the job: too large"):
        start(monkeypatch, [ValueError("too large")], RuntimeError("does not exist"))


def test_where_nobody_knows_the_command_that_tells_is_printed(monkeypatch):
    with pytest.raises(StoppedError, match=r"was lost while it took the job .* ray job logs"):
        start(monkeypatch, [OSError("reset")], OSError("refused"))


def test_a_silent_server_ends_it_with_what_to_do(monkeypatch):
    monkeypatch.setattr(submission, "_MAX_SILENCE_S", 0.05)
    with pytest.raises(StoppedError, match=r"ray job logs --address .* --follow tlray-predict-1"):
        follow(monkeypatch, [[OSError("refused")]] * 100_000, [OSError("refused")] * 100_000)
