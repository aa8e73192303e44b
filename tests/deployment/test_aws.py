"""The cluster of virtual machines: Ray's own checks, EC2's own parameters, policies that give no more than named."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import boto3
import botocore.client
import botocore.session
import botocore.validate
import jsonschema
import pytest
import yaml
from moto import mock_aws

from tests.conftest import ROOT

TEXT = (ROOT / "cluster" / "aws.yaml").read_text()
CONFIG = yaml.safe_load(TEXT)
POLICIES = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "cluster" / "iam").glob("*.json"))}
WORKERS = [name for name in CONFIG["available_node_types"] if name != CONFIG["head_node_type"]]


def prepare(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` makes of a config before it asks AWS for anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def find_unknown(node_config: dict[str, Any]) -> str:
    """What EC2's RunInstances doesn't know or want of a node's config; Ray itself chooses among the subnets."""
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    asked = {name: value for name, value in node_config.items() if name != "SubnetIds"} | {"MinCount": 1, "MaxCount": 1}
    report: str = botocore.validate.ParamValidator().validate(asked, shape).generate_report()
    return report


def test_ray_takes_the_config():
    prepared = prepare(CONFIG)
    # its defaults would install a nightly build, and show the dashboard to all
    assert prepared["setup_commands"] == prepared["head_setup_commands"] == prepared["worker_setup_commands"] == []


@pytest.mark.parametrize(
    "path",
    [("idle_timeout_minute",), ("initialization_command",), ("docker", "run_option"),
     ("available_node_types", "cpu", "max_worker")],
)  # fmt: skip
def test_ray_refuses_a_misspelt_field(path):
    config = copy.deepcopy(CONFIG)
    part = config
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = part.pop(f"{path[-1]}s")
    with pytest.raises(jsonschema.ValidationError):
        prepare(config)


@pytest.mark.parametrize("name", CONFIG["available_node_types"])
def test_ec2_knows_every_parameter(name):
    node_config = CONFIG["available_node_types"][name]["node_config"]
    assert find_unknown(node_config) == ""
    assert "HttpToken" in find_unknown({**node_config, "MetadataOptions": {"HttpToken": "required"}})


@pytest.mark.parametrize("name", CONFIG["available_node_types"])
def test_a_machine_opens_nothing_by_itself(name):
    node_config = CONFIG["available_node_types"][name]["node_config"]
    assert node_config["SecurityGroupIds"]
    assert node_config["MetadataOptions"]["HttpTokens"] == "required"
    assert all(disk["Ebs"]["Encrypted"] for disk in node_config["BlockDeviceMappings"])
    assert "security_group" not in CONFIG["provider"]


def test_the_head_has_no_work_and_every_node_wants_the_token():
    head = CONFIG["available_node_types"][CONFIG["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    (start,) = [command for command in CONFIG["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start
    assert "--num-cpus=0" in start
    for command in CONFIG["head_start_ray_commands"] + CONFIG["worker_start_ray_commands"]:
        assert "ray start" not in command or "RAY_AUTH_MODE=token ray start" in command
    assert CONFIG["file_mounts"] == {"/home/tlray/.ray/auth_token": "~/.ray/auth_token"}


def test_workers_watch_for_the_spot_notice():
    (watch,) = [command for command in CONFIG["worker_start_ray_commands"] if "tlray.cluster.spot" in command]
    assert watch.startswith("RAY_AUTH_MODE=token nohup ")
    assert watch.endswith(" &")  # ray up waits for its commands
    assert not [command for command in CONFIG["head_start_ray_commands"] if "spot" in command]


def test_gpus_come_on_spot_first():
    types = CONFIG["available_node_types"]
    assert types["gpu-spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types["gpu-on-demand"]["node_config"]
    assert types["gpu-spot"]["priority"] > types["gpu-on-demand"]["priority"]
    assert {name for name in WORKERS if "GPU" in types[name]["resources"]} == {"gpu-spot", "gpu-on-demand"}
    for name in WORKERS:
        assert ("GPU" in types[name]["resources"]) == types[name].get("docker", {}).get("worker_image", "").endswith(
            "gpu"
        )


# ---- Ray's own launcher, against a simulated AWS


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The config as `ray up` completes it in an account that has what the runbook makes beforehand."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "simulated")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        from ray.autoscaler._private.aws.config import bootstrap_aws

        ec2 = boto3.client("ec2", CONFIG["provider"]["region"])
        network = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        zone = CONFIG["provider"]["availability_zone"]
        subnet = ec2.create_subnet(VpcId=network, CidrBlock="10.0.0.0/24", AvailabilityZone=zone)["Subnet"]["SubnetId"]
        ec2.modify_subnet_attribute(SubnetId=subnet, MapPublicIpOnLaunch={"Value": True})
        group = ec2.create_security_group(GroupName="tlray", Description="of the test", VpcId=network)["GroupId"]
        ec2.create_key_pair(KeyName="tlray")
        iam = boto3.client("iam")
        for role, policies in {"tlray-worker": ["workers"], "tlray-head": ["head", "workers"]}.items():
            iam.create_role(RoleName=role, AssumeRolePolicyDocument=json.dumps(POLICIES["trust-ec2"]))
            for policy in policies:
                iam.put_role_policy(RoleName=role, PolicyName=policy, PolicyDocument=json.dumps(POLICIES[policy]))
            iam.create_instance_profile(InstanceProfileName=role)
            iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
        image = ec2.describe_images()["Images"][0]["ImageId"]
        text = TEXT.replace("subnet-0123456789abcdef0", subnet).replace("sg-0123456789abcdef0", group)
        text = text.replace("ami-0123456789abcdef0", image).replace("111122223333", "123456789012")
        before = list_made()
        config: dict[str, Any] = bootstrap_aws(prepare(yaml.safe_load(text)))
        assert list_made() == before
        yield config


def list_made() -> list[Any]:
    """What Ray would make where a config doesn't name it, open to the world or with all rights."""
    ec2, iam = boto3.client("ec2", CONFIG["provider"]["region"]), boto3.client("iam")
    return [
        ec2.describe_security_groups()["SecurityGroups"],
        ec2.describe_key_pairs()["KeyPairs"],
        iam.list_roles()["Roles"],
        iam.list_instance_profiles()["InstanceProfiles"],
    ]


def test_the_head_launches_tags_and_ends_a_worker_with_what_its_policy_allows(account, monkeypatch):
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    asked = set()
    call = botocore.client.BaseClient._make_api_call

    def record(client: Any, operation: str, parameters: Any) -> Any:
        asked.add(f"{client.meta.service_model.service_name}:{operation}")
        return call(client, operation, parameters)

    provider = AWSNodeProvider(account["provider"], account["cluster_name"])
    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", record)
    provider.create_node(account["available_node_types"]["gpu-spot"]["node_config"], {"ray-node-type": "worker"}, 1)
    (node,) = provider.non_terminated_nodes({"ray-node-type": "worker"})
    provider.set_node_tags(node, {"ray-node-status": "up-to-date"})
    (made,) = boto3.client("ec2", CONFIG["provider"]["region"]).describe_instances()["Reservations"][0]["Instances"]
    tags = {tag["Key"]: tag["Value"] for tag in made["Tags"]}
    provider.terminate_node(node)

    allowed = {action for found in POLICIES["head"]["Statement"] for action in to_list(found["Action"])}
    assert {"ec2:RunInstances", "ec2:CreateTags", "ec2:TerminateInstances"} <= asked <= allowed
    (launch,) = [found for found in POLICIES["head"]["Statement"] if found["Sid"] == "LaunchWorkersOfThisCluster"]
    for name, value in launch["Condition"]["StringEquals"].items():
        if name.startswith("aws:RequestTag/"):
            assert tags[name.partition("/")[2]] == value
    assert made["InstanceLifecycle"] == "spot"
    assert made["MetadataOptions"]["HttpTokens"] == "required"


# ---- policies


def list_statements() -> list[Any]:
    return [
        pytest.param(name, statement, id=f"{name}-{statement['Sid']}")
        for name, policy in POLICIES.items()
        for statement in policy["Statement"]
    ]


def to_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


NOT_LIMITED = {"ec2:DescribeImages", "ec2:DescribeInstanceTypes", "ec2:DescribeInstances", "ecr:GetAuthorizationToken"}


@pytest.mark.parametrize(("name", "statement"), list_statements())
def test_a_policy_gives_no_more_than_it_names(name, statement):
    assert statement["Effect"] == "Allow"
    actions, resources = to_list(statement["Action"]), to_list(statement.get("Resource", []))
    assert not [action for action in actions if "*" in action]
    if "*" in resources:  # AWS takes no other resource for these
        assert set(actions) <= NOT_LIMITED
        assert statement["Condition"]
    for resource in resources:
        assert resource == "*" or resource.startswith("arn:aws:")
    if actions != ["sts:AssumeRole"]:
        assert resources
        assert set(statement) <= {"Sid", "Effect", "Action", "Resource", "Condition"}


def find_statement(policy: str, action: str) -> list[dict[str, Any]]:
    return [statement for statement in POLICIES[policy]["Statement"] if action in to_list(statement["Action"])]


def test_the_head_ends_its_own_machines_only_and_passes_one_role():
    (end,) = find_statement("head", "ec2:TerminateInstances")
    assert end["Condition"]["StringEquals"] == {"aws:ResourceTag/ray-cluster-name": CONFIG["cluster_name"]}
    (hand,) = find_statement("head", "iam:PassRole")
    assert hand["Resource"].endswith(":role/tlray-worker")
    assert hand["Condition"] == {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}


def test_the_head_may_launch_what_the_config_asks_for():
    launch = find_statement("head", "ec2:RunInstances")
    resources = [resource for statement in launch for resource in to_list(statement["Resource"])]
    (instances,) = [statement for statement in launch if str(statement["Resource"]).endswith(":instance/*")]
    condition = instances["Condition"]
    types = CONFIG["available_node_types"]
    assert {types[name]["node_config"]["InstanceType"] for name in WORKERS} == set(
        condition["StringEquals"]["ec2:InstanceType"]
    )
    for name in WORKERS:
        node_config = types[name]["node_config"]
        assert node_config["IamInstanceProfile"]["Arn"] == condition["ArnEquals"]["ec2:InstanceProfile"]
        for wanted in [node_config["ImageId"], *node_config["SubnetIds"], *node_config["SecurityGroupIds"]]:
            assert any(resource.endswith(f"/{wanted}") for resource in resources)
        assert any(resource.endswith(f":key-pair/{node_config['KeyName']}") for resource in resources)
    assert all(f":ec2:{CONFIG['provider']['region']}:" in resource for resource in resources)


def test_workers_read_the_input_and_write_the_output():
    written = {resource for found in find_statement("workers", "s3:PutObject") for resource in found["Resource"]}
    assert all(resource.endswith("/*") and resource.count("/") == 2 for resource in written)
    assert not any("my-images" in resource for resource in written)
    (read,) = [found for found in POLICIES["workers"]["Statement"] if found["Action"] == "s3:GetObject"]
    assert read["Resource"] == "arn:aws:s3:::my-images/*"


def test_workers_use_the_key_of_encrypted_buckets_through_s3_only():
    (use,) = find_statement("workers", "kms:Decrypt")
    assert use["Action"] == ["kms:Decrypt", "kms:GenerateDataKey"]
    region = CONFIG["provider"]["region"]
    assert use["Resource"].startswith(f"arn:aws:kms:{region}:111122223333:key/")
    assert use["Condition"] == {"StringEquals": {"kms:ViaService": f"s3.{region}.amazonaws.com"}}
