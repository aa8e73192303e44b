import pytest

from tlray.errors import StoppedError
from tlray.model import precision, tf_imports


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
    monkeypatch.setattr(tf_imports, "has_bfloat16", lambda: True)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "TF_ENABLE_ONEDNN_OPTS"):
        monkeypatch.delenv(name, raising=False)
    if limit is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert precision.detect_fastest(gpus=False) == expected
    tf_imports.enable_onednn()
    # TensorFlow would ask oneDNN for bfloat16 all the same
    assert tf_imports.os.environ["TF_ENABLE_ONEDNN_OPTS"] == ("1" if expected == "bfloat16" else "0")


def test_a_cpu_without_the_flags_computes_in_float32(monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda: False)
    assert precision.detect_fastest(gpus=False) == "float32"


@pytest.mark.parametrize(
    ("asked", "fastest", "gpus", "frozen", "step"),
    [
        ("auto", "float32", False, "float32", "float32"),
        ("auto", "bfloat16", False, "bfloat16", "float32"),
        ("auto", "bfloat16", True, "bfloat16", "bfloat16"),
        ("auto", "float16", True, "float16", "float16"),
        ("bfloat16", "float32", False, "bfloat16", "bfloat16"),
    ],
)
def test_a_training_takes_its_precision_from_the_machine(asked, fastest, gpus, frozen, step):
    chosen = precision.choose_precision(asked, fastest, gpus=gpus)
    assert (chosen.frozen, chosen.step) == (frozen, step)
    assert bool(chosen.reason) == (asked == "auto")
    assert chosen.storage_dtype == ("float32" if frozen == step == "float32" else "float16")


def test_an_engine_tries_the_fastest_type_first():
    assert precision.list_precisions("auto", "bfloat16", gpus=False) == ["bfloat16", "float32"]
    assert precision.list_precisions("auto", "bfloat16", gpus=True) == ["float16", "float32"]
    assert precision.list_precisions("auto", "float32", gpus=True) == ["float32"]
    assert precision.list_precisions("float32", "bfloat16", gpus=False) == ["float32"]
    with pytest.raises(StoppedError, match="takes auto or float32 on this CPU; got bfloat16"):
        precision.list_precisions("bfloat16", "float32", gpus=False)
