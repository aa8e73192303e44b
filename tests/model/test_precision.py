import pytest

from tlray.model import precision
from tlray.model import tf_imports as lean


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (None, "bfloat16"),
        ("AVX2", "float32"),
        ("AVX512_CORE", "float32"),
        ("avx512_core_bf16", "bfloat16"),
        ("AVX512_CORE_AMX", "bfloat16"),
        ("DEFAULT", "bfloat16"),
    ],
)
def test_bfloat16_is_not_chosen_where_onednn_was_told_to_do_without(limit, expected, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)
    monkeypatch.setattr(lean, "has_bfloat16", lambda: True)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "TF_ENABLE_ONEDNN_OPTS"):
        monkeypatch.delenv(name, raising=False)
    if limit is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert precision.detect_fastest(gpus=False) == expected
    lean.enable_onednn()
    # TensorFlow would ask oneDNN for bfloat16 all the same
    assert lean.os.environ["TF_ENABLE_ONEDNN_OPTS"] == ("1" if expected == "bfloat16" else "0")


def test_a_cpu_without_the_flags_computes_in_float32(monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda: False)
    assert precision.detect_fastest(gpus=False) == "float32"
