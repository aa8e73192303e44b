"""Checks of the machines of a joined cluster."""

import pytest

from tlray.cluster import checks as joining
from tlray.cluster.checks import Process, _find_unseen, check_nodes, check_seen, check_shared
from tlray.cluster.nodes import Node
from tlray.errors import DataError, OutputError, StoppedError
from tlray.version import __version__

HEAD = Node("a", "10.0.0.1", True, 0.0, 0.0, 2**30)
ONE = Node("b", "10.0.0.2", False, 4.0, 1.0, 2**30)
TWO = Node("c", "10.0.0.3", False, 4.0, 1.0, 2**30)


@pytest.fixture
def cluster(monkeypatch):
    """Three machines without Ray; one without an entry in `answers` (by node id) answers as this process."""
    state = {"answers": {}, "said": [], "asked": [], "gcs": "10.0.0.1:6379"}

    def ask(nodes, question, *arguments):
        state["asked"] += [node.node_id for node in nodes]
        answers = state["answers"]
        return [answers[node.node_id] if node.node_id in answers else question(*arguments) for node in nodes]

    class Context:
        @property
        def gcs_address(self):
            return state["gcs"]

    monkeypatch.setattr(joining, "list_nodes", lambda: [HEAD, ONE, TWO])
    monkeypatch.setattr(joining, "ask_nodes", ask)
    monkeypatch.setattr(joining, "say", state["said"].append)
    monkeypatch.setattr(joining.ray, "get_runtime_context", Context)
    return state


def test_machines_with_this_tlray_and_a_token_pass(cluster):
    cluster["answers"] = dict.fromkeys("abc", Process(__version__, True))
    check_nodes()
    assert cluster["said"] == []


def test_another_version_of_tlray_is_refused(cluster):
    cluster["answers"] = {"a": Process(__version__, True), "b": Process("0.0.9", True), "c": Process("0.0.9", True)}
    with pytest.raises(StoppedError, match=r"10\.0\.0\.2, 10\.0\.0\.3 has tlray 0\.0\.9; .* tlray submit"):
        check_nodes()


def test_a_machine_without_tlray_is_refused(cluster):
    cluster["answers"] = dict.fromkeys("ab", Process(__version__, True))
    cluster["answers"]["c"] = RuntimeError("ModuleNotFoundError: No module named 'tlray'")
    with pytest.raises(StoppedError, match=r"10\.0\.0\.3 has no tlray"):
        check_nodes()


def test_a_machine_that_does_not_answer_is_left_unchecked(cluster):
    cluster["answers"] = {"a": Process(__version__, True), "b": Process(__version__, True), "c": TimeoutError("60 s")}
    check_nodes()
    assert cluster["said"] == ["WARNING: 10.0.0.3 does not answer (60 s); continuing without checking it"]


def test_51_an_open_cluster_is_warned_about(cluster):
    cluster["answers"] = dict.fromkeys("abc", Process(__version__, False))
    check_nodes()
    (line,) = cluster["said"]
    assert "WARNING: this cluster asks for no token: anyone who reaches its ports can run code on it" in line
    assert "RAY_AUTH_MODE=token" in line


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "localhost:6379", "[::1]:6379"])
def test_51_a_cluster_on_the_loopback_address_is_not_warned_about(cluster, address):
    cluster |= {"answers": dict.fromkeys("abc", Process(__version__, False)), "gcs": address}
    check_nodes()
    assert cluster["said"] == []


def test_files_that_every_worker_sees_pass(cluster, tmp_path):
    (tmp_path / "a.png").write_bytes(b"abc")
    check_seen("--input", [(str(tmp_path / "a.png"), 3), ("s3://photos/b.png", 7)])
    assert cluster["asked"] == ["b", "c"]  # a head that takes no work reads none


def test_s3_addresses_are_not_checked_on_machines(cluster):
    check_seen("--input", [("s3://photos/b.png", 7)])
    check_shared("--cache-dir", "s3://cache")
    assert cluster["asked"] == []


def test_a_file_that_a_worker_cannot_see_is_refused(cluster, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"abc")
    cluster["answers"] = {"c": str(path)}
    with pytest.raises(DataError, match=rf"--input: {path} is not there on 10\.0\.0\.3, or another file; give s3://"):
        check_seen("--input", [(str(path), 3)])


@pytest.mark.parametrize(("name", "size"), [("none.png", 3), ("a.png", 4)])
def test_a_file_that_is_missing_or_changed_here_too_is_not_checked_on_machines(cluster, tmp_path, name, size):
    (tmp_path / "a.png").write_bytes(b"abc")
    assert _find_unseen([(str(tmp_path / name), size)]) == str(tmp_path / name)
    check_seen("--input", [(str(tmp_path / name), size)])
    assert cluster["asked"] == []


def test_a_folder_is_shared_if_every_worker_sees_a_new_file_in_it(cluster, tmp_path):
    check_shared("--storage-path", str(tmp_path / "not" / "yet"))
    assert list(tmp_path.iterdir()) == []
    cluster["answers"] = {"c": "the mark"}
    with pytest.raises(OutputError, match=r"--storage-path .* is not the same folder on 10\.0\.0\.3; give s3://"):
        check_shared("--storage-path", str(tmp_path))
    assert list(tmp_path.iterdir()) == []
