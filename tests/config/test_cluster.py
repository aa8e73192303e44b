import pytest

from tlray.config import DoctorConfig, SubmitConfig
from tlray.errors import ConfigError


@pytest.mark.parametrize("address", [None, "http://127.0.0.1:8265", "https://ray.example", "http://head:8265/"])
def test_a_job_server_is_an_http_address(address):
    SubmitConfig(command="predict", address=address).check()


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://head:10001", "http://", "https:///", "http:head", ""])
def test_other_addresses_of_a_job_server_are_refused(address):
    with pytest.raises(ConfigError) as caught:
        SubmitConfig(command="predict", address=address).check()
    assert caught.value.faults == (
        f"--address takes the job server of a cluster, such as http://127.0.0.1:8265; got {address!r}",
    )


def test_addresses_to_examine_are_refused_together():
    DoctorConfig().check()
    DoctorConfig(input=("photos", "s3://photos"), model="bundle", output="s3://labels").check()
    with pytest.raises(ConfigError) as caught:
        DoctorConfig(input=("http://x/y", "photos"), model="s3://", output="", max_cpus=0).check()
    assert [fault.split()[0] for fault in caught.value.faults] == ["--input", "--model", "--output", "--max-cpus"]
