from types import SimpleNamespace

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


@pytest.mark.parametrize(
    ("machines", "common"),
    [
        (["bfloat16", "bfloat16"], "bfloat16"),
        (["bfloat16", "float16"], "float16"),  # an A100 beside a T4
        (["float16", "float16"], "float16"),
        (["bfloat16", "float32"], "float32"),  # CPUs with and without it
        (["float16", "float32", "bfloat16"], "float32"),
        ([], "float32"),
    ],
)
def test_the_type_of_a_cluster_is_one_that_all_machines_have(machines, common):
    assert precision.find_common(machines) == common


@pytest.mark.parametrize(
    ("told", "memory", "fastest"),
    [("7.5\n", "15360\n", "float16"), ("8.0\n7.0\n", "40960\n16384\n", "float16"), ("9.0\n", "143771\n", "bfloat16")],
)
def test_the_driver_tells_about_gpus(monkeypatch, told, memory, fastest):
    """The weakest GPU of a machine decides."""
    answers = {"--query-gpu=compute_cap": told, "--query-gpu=memory.total": memory}
    monkeypatch.setattr(precision.shutil, "which", lambda _: "nvidia-smi")
    monkeypatch.setattr(precision.subprocess, "run", lambda command, **_: SimpleNamespace(stdout=answers[command[1]]))
    assert precision.detect_fastest(gpus=True) == fastest
    assert precision.read_gpu_memory() == min(int(line) for line in memory.split())


def test_without_a_driver_nothing_is_known_about_gpus(monkeypatch):
    monkeypatch.setattr(precision.shutil, "which", lambda _: None)
    assert precision.detect_fastest(gpus=True) == "float32"
    assert precision.read_gpu_memory() is None


def test_an_engine_tries_the_fastest_type_first():
    assert precision.list_precisions("auto", "bfloat16", gpus=False) == ["bfloat16", "float32"]
    assert precision.list_precisions("auto", "bfloat16", gpus=True) == ["float16", "float32"]
    assert precision.list_precisions("auto", "float32", gpus=True) == ["float32"]
    assert precision.list_precisions("float32", "bfloat16", gpus=False) == ["float32"]
    with pytest.raises(StoppedError, match="takes auto or float32 on this CPU; got bfloat16"):
        precision.list_precisions("bfloat16", "float32", gpus=False)


@pytest.mark.parametrize(("visible", "count"), [(None, 2), ("", 0), ("-1", 0), ("1", 1), ("0,1", 2), ("0,1,2", 2)])
def test_gpus_that_a_process_sees_are_counted(monkeypatch, visible, count):
    monkeypatch.setattr(precision, "_query_gpus", lambda field: [1.0, 1.0])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert precision.count_gpus() == count
