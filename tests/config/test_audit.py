import pytest

from tlray.config import AuditConfig
from tlray.errors import ConfigError


def test_an_audit_either_draws_or_measures():
    AuditConfig(labels="labels", sample=10_000).check()
    AuditConfig(labels="labels", answers="s3://labels/audit/sample.csv").check()
    with pytest.raises(ConfigError, match="--sample N, to draw rows, or --answers FILE, to measure them; got neither"):
        AuditConfig(labels="labels").check()
    with pytest.raises(ConfigError, match="got both"):
        AuditConfig(labels="labels", sample=1, answers="sample.csv").check()
    with pytest.raises(ConfigError) as caught:
        AuditConfig(labels="", sample=0, seed=2**32, output="ftp://x").check()
    assert [fault.split()[0] for fault in caught.value.faults] == ["--labels", "--output", "--sample", "--seed"]


def test_forms_may_be_one_or_several():
    assert AuditConfig(labels="labels", answers="a.csv").list_answers() == ["a.csv"]
    config = AuditConfig(labels="labels", answers=("a.csv", "s3://b/c.csv"), until=0.01)
    config.check()
    assert config.list_answers() == ["a.csv", "s3://b/c.csv"]
    assert AuditConfig(labels="labels", sample=5).list_answers() == []
    with pytest.raises(ConfigError, match="--answers takes"):
        AuditConfig(labels="labels", answers=("a.csv", "ftp://x")).check()


def test_a_width_goes_with_answers():
    with pytest.raises(ConfigError, match="--until goes with --answers; got it with --sample"):
        AuditConfig(labels="labels", sample=10, until=0.1).check()
    with pytest.raises(ConfigError, match=r"--until takes 0\.0001 to 0\.9; got 1"):
        AuditConfig(labels="labels", answers="a.csv", until=1).check()
