"""Kubernetes manifests and the runbook: held against the schemas that a cluster holds them against, and tlray's own."""

import copy
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.conftest import ROOT, find_test_data
from tlray.cli import commands as cli
from tlray.cluster.resources import Cluster, plan_workers
from tlray.config import TrainConfig

MANIFESTS = sorted((ROOT / "cluster" / "k8s").glob("*.yaml"))
CRDS = find_test_data() / "kuberay-crds"
KUBERNETES_VERSIONS = ("1.33", kubernetes_validate.latest_version())
MEBIBYTES = {"Mi": 1, "Gi": 1024}

needs_crds = pytest.mark.skipif(
    not CRDS.is_dir(), reason=f"TLRAY_TEST_DATA names no folder with KubeRay's definitions ({CRDS})"
)


def load(path: Path) -> list[dict[str, Any]]:
    return list(yaml.load_all(path.read_text(), yaml.CSafeLoader))


def list_documents(*kinds: str) -> list[Any]:
    found = [(path.stem, document) for path in MANIFESTS for document in load(path)]
    return [
        pytest.param(document, id=f"{name}-{document['kind']}")
        for name, document in found
        if not kinds or document["kind"] in kinds
    ]


def close(schema: Any) -> Any:
    """The schema with every object closed to fields that it doesn't name, as the API server prunes them."""
    if isinstance(schema, list):
        return [close(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: close(part) for key, part in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


@cache
def load_definition(kind: str) -> Any:
    (definition,) = load(CRDS / f"ray.io_{kind.lower()}s.yaml")
    (schema,) = [version["schema"] for version in definition["spec"]["versions"] if version["name"] == "v1"]
    return jsonschema.Draft202012Validator(close(schema["openAPIV3Schema"]))


def check_definition(document: dict[str, Any]) -> None:
    load_definition(document["kind"]).validate(document)


def check_kubernetes(document: dict[str, Any]) -> None:
    for version in KUBERNETES_VERSIONS:
        kubernetes_validate.validate(document, version, strict=True)


def list_templates(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Every pod template of a RayJob or RayCluster, the submitter's first, then the head's."""
    spec = document["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    submitter = [spec["submitterPodTemplate"]] if "submitterPodTemplate" in spec else []
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return submitter + [group["template"] for group in groups]


def check_pods(document: dict[str, Any]) -> None:
    """Hold what KubeRay's definitions leave open, metadata, and all pods against Kubernetes' own schemas."""
    check_kubernetes({"apiVersion": "v1", "kind": "ConfigMap", "metadata": document["metadata"]})
    for template in list_templates(document):
        check_kubernetes({"apiVersion": "v1", "kind": "Pod", "metadata": {}, **template})


def get(document: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        document = document[step]
    return document


def misspell(document: dict[str, Any], path: tuple[str | int, ...]) -> dict[str, Any]:
    """A copy with one key, the last of `path`, misspelt."""
    changed: dict[str, Any] = json.loads(json.dumps(document))  # without what YAML's anchors share
    parent = get(changed, path[:-1])
    parent[f"{path[-1]}s"] = parent.pop(path[-1])
    return changed


FREE = {"annotations", "labels", "limits", "rayStartParams", "requests"}


def walk_keys(part: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths of all keys but those that anybody may choose."""
    if isinstance(part, dict):
        for key, value in part.items():
            yield (*path, key)
            if key not in FREE:
                yield from walk_keys(value, (*path, key))
    elif isinstance(part, list):
        for index, value in enumerate(part):
            yield from walk_keys(value, (*path, index))


# ---- schemas


@needs_crds
@pytest.mark.parametrize("document", list_documents("RayJob", "RayCluster"))
def test_a_manifest_keeps_to_kuberays_definition(document):
    check_definition(document)


@pytest.mark.parametrize("document", list_documents("RayJob", "RayCluster"))
def test_pods_keep_to_kubernetes_schema(document):
    check_pods(document)


@pytest.mark.parametrize("document", list_documents("Namespace", "ServiceAccount", "NetworkPolicy"))
def test_what_they_stand_on_keeps_to_kubernetes_schema(document):
    check_kubernetes(document)


def test_every_kind_is_looked_at():
    assert {document["kind"] for path in MANIFESTS for document in load(path)} == {
        "RayJob", "RayCluster", "Namespace", "ServiceAccount", "NetworkPolicy",
    }  # fmt: skip


@needs_crds
@pytest.mark.parametrize("document", list_documents("RayJob", "RayCluster"))
def test_any_misspelt_field_is_found(document):
    paths = [path for path in walk_keys({"spec": document["spec"]}) if len(path) > 1]
    assert len(paths) > 100
    definition = load_definition(document["kind"])
    assert [path for path in paths if definition.is_valid(misspell(document, path))] == []


@pytest.mark.parametrize(
    "path",
    [
        ("metadata", "namespace"),
        ("spec", "submitterPodTemplate", "spec", "restartPolicy"),
        ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "securityContext", "runAsNonRoot"),
        ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "resources", "limits"),
        ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "volumes", 0, "emptyDir", "medium"),
    ],
)
def test_a_misspelt_field_is_found_by_kubernetes_schema_too(path):
    (document,) = load(ROOT / "cluster" / "k8s" / "train-gpu.yaml")
    check_pods(document)
    with pytest.raises(jsonschema.ValidationError):
        check_pods(misspell(document, path))


@needs_crds
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("authOptions", "mode"), "password"),
        (("workerGroupSpecs", 0, "replicas"), "four"),
        (("workerGroupSpecs", 0, "template", "spec", "containers", 0, "resources", "limits", "memory"), "52 Gigs"),
        (("headGroupSpec", "rayStartParams", "num-cpus"), 0),
    ],
)
def test_a_value_of_another_kind_is_found(path, value):
    (document,) = copy.deepcopy(load(ROOT / "cluster" / "k8s" / "train-gpu.yaml"))
    get(document["spec"]["rayClusterSpec"], path[:-1])[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check_definition(document)


# ---- what they say


@pytest.mark.parametrize("document", list_documents("RayJob", "RayCluster"))
def test_a_cluster_wants_a_token_and_shows_nothing_outside(document):
    cluster = document["spec"].get("rayClusterSpec", document["spec"])
    assert cluster["authOptions"]["mode"] == "token"
    head = cluster["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP"
    assert head["enableIngress"] is False
    assert head["rayStartParams"]["num-cpus"] == "0"
    locked = re.search(r"^ray==(\S+)", (ROOT / "cluster" / "requirements-cluster.txt").read_text(), re.MULTILINE)
    assert locked is not None
    assert cluster["rayVersion"] == locked[1]


@pytest.mark.parametrize("document", list_documents("RayJob", "RayCluster"))
def test_every_container_is_held_down_and_bounded(document):
    options = document["spec"].get("autoscalerOptions")
    pods = [template["spec"] for template in list_templates(document)]
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        assert pod["serviceAccountName"] == "tlray"
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    for container in [container for pod in pods for container in pod["containers"]] + ([options] if options else []):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["runAsNonRoot"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert set(container["resources"]["limits"]) >= {"cpu", "memory"}
        assert set(container["resources"]["requests"]) >= {"cpu", "memory"}


def to_mebibytes(quantity: str) -> int:
    return int(quantity[:-2]) * MEBIBYTES[quantity[-2:]]


@pytest.mark.parametrize("document", list_documents("RayJob", "RayCluster"))
def test_the_object_store_fits_shared_memory_and_that_the_container(document):
    cluster = document["spec"].get("rayClusterSpec", document["spec"])
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        shared = volumes[mounts["/dev/shm"]]["emptyDir"]
        assert shared["medium"] == "Memory"
        store = int(group["rayStartParams"]["object-store-memory"]) / 2**20
        memory = to_mebibytes(pod["containers"][0]["resources"]["limits"]["memory"])
        assert store < to_mebibytes(shared["sizeLimit"]) < memory / 2


@pytest.mark.parametrize("document", list_documents("RayJob"))
def test_a_job_ends_retries_and_cleans_up(document):
    spec = document["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] >= 1
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["activeDeadlineSeconds"] > spec["preRunningDeadlineSeconds"] > 0
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]


def test_the_cluster_that_stays_grows_from_nothing():
    (document,) = load(ROOT / "cluster" / "k8s" / "cluster.yaml")
    spec = document["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert [group["minReplicas"] for group in groups.values()] == [0, 0, 0]
    assert groups["gpu-spot"]["priority"] > groups["gpu-on-demand"]["priority"]
    limits = {name: group["template"]["spec"]["containers"][0]["resources"]["limits"] for name, group in groups.items()}
    assert {name for name, limit in limits.items() if "nvidia.com/gpu" in limit} == {"gpu-spot", "gpu-on-demand"}


def test_rays_autoscaler_reads_the_groups():
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    (document,) = load(ROOT / "cluster" / "k8s" / "cluster.yaml")
    config = _derive_autoscaling_config_from_ray_cr(document)
    read = {
        name: (kind["resources"].get("CPU"), kind["resources"].get("GPU", 0), kind["max_workers"], kind.get("priority"))
        for name, kind in config["available_node_types"].items()
    }
    assert read == {
        "headgroup": (0, 0, 0, None),
        "gpu-spot": (14, 1, 8, 20),
        "gpu-on-demand": (14, 1, 2, 10),
        "cpu": (14, 0, 8, 0),
    }
    assert config["idle_timeout_minutes"] == 10


@pytest.mark.parametrize("path", [*MANIFESTS, ROOT / "cluster" / "aws.yaml"], ids=lambda path: path.stem)
def test_no_credential_stands_in_a_file(path):
    text = path.read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|aws_secret_access_key|runtimeEnvYAML|RAY_AUTH_MODE[=: ]+disabled", text)
    for document in load(path):
        for found in walk_keys(document):
            if found[-1] == "value":
                name = get(document, found[:-1]).get("name", "")
                assert not re.search("TOKEN|SECRET|PASSWORD|ACCESS_KEY", name), name


# ---- tlray's own flags


def parse(command: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What tlray itself makes of `tlray NAME FLAGS` or `python .../jobs/NAME.py FLAGS`, checked."""
    words = shlex.split(command)
    if words[0] == "python":
        assert (ROOT / "jobs" / Path(words[1]).name).is_file()
        words = ["tlray", Path(words[1]).stem, *words[2:]]
    assert words[0] == "tlray"
    taken: list[Any] = []

    def take(config: Any) -> int:
        taken.append(config)
        return 0

    known = cli.COMMANDS[words[1]]
    monkeypatch.setitem(cli.COMMANDS, words[1], cli.Command(known.config, take, known.summary))
    assert cli.run_command(words[1], words[2:]) == 0, command
    if words[1] == "submit":
        return cli.parse(taken[0].command, taken[0].options)
    return taken[0]


@pytest.mark.parametrize("document", list_documents("RayJob"))
def test_an_entry_point_is_understood(document, monkeypatch):
    config = parse(document["spec"]["entrypoint"], monkeypatch)
    assert config.output.startswith("s3://")


def test_a_misspelt_flag_is_found(monkeypatch):
    (document,) = load(ROOT / "cluster" / "k8s" / "train-gpu.yaml")
    with pytest.raises(SystemExit):
        parse(document["spec"]["entrypoint"].replace("--num-workers", "--num-wrokers"), monkeypatch)
    with pytest.raises(AssertionError, match="--batch-size"):
        parse(document["spec"]["entrypoint"].replace("--batch-size 64", "--batch-size 0"), monkeypatch)


def test_the_training_job_has_the_workers_that_it_asks_for(monkeypatch):
    (document,) = load(ROOT / "cluster" / "k8s" / "train-gpu.yaml")
    config = parse(document["spec"]["entrypoint"], monkeypatch)
    assert isinstance(config, TrainConfig)
    assert config.cache_dir is not None
    cpus = gpus = 0
    for group in document["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cpus += group["replicas"] * int(limits["cpu"])
        gpus += group["replicas"] * int(limits["nvidia.com/gpu"])
    assert gpus == config.num_workers
    plan_workers(Cluster(cpus, gpus, local=False), config.num_workers, config.gpus_per_worker)


def list_commands() -> list[str]:
    """Every tlray command in the runbook's code blocks, also what a Ray job is told to run."""
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / "cluster" / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    lines = r"^(?:docker run .*|ray job submit .*? -- )?((?:tlray|python jobs/) .*?)(?: +#.*)?$"
    return re.findall(lines, text, re.MULTILINE)


def test_the_runbook_shows_commands():
    assert {command.split()[1] for command in list_commands()} >= {"train", "predict", "plan", "verify"}


@pytest.mark.parametrize("command", list_commands())
def test_a_command_of_the_runbook_is_understood(command, monkeypatch):
    parse(command, monkeypatch)


def test_the_runbook_names_every_file():
    text = (ROOT / "cluster" / "README.md").read_text()
    files = [path for path in (ROOT / "cluster").rglob("*") if path.is_file() and path.name != "README.md"]
    assert [path.name for path in files if path.name not in text] == []
