import hashlib
import json
import re

import numpy as np
import pytest

from tests.factories import make_epoch
from tests.model.data import CONFIG, make_graph, make_keras_file, make_model_files, write_bundle
from tlray import storage
from tlray.errors import BundleError, Code, FetchError, OutageError
from tlray.model.bundle import GOLDEN, HISTORY, MANIFEST, NETWORK, load_bundle, read_manifest, unpack
from tlray.model.manifest import FORMAT


@pytest.fixture
def path(tmp_path):
    write_bundle(str(tmp_path / "bundle"))
    return tmp_path / "bundle"


def edit(path, name, change, *, sign=True):
    """Change a JSON file of a bundle; `sign` fits the checksums to it."""
    value = json.loads((path / name).read_text())
    (path / name).write_text(json.dumps(change(value) or value))
    if sign and name != MANIFEST:
        digest = hashlib.sha256((path / name).read_bytes()).hexdigest()
        edit(path, MANIFEST, lambda manifest: manifest["files"].update({name: digest}))


def refuse(path):
    """Return the one sentence, after the address, with which a bundle is refused."""
    with pytest.raises(BundleError) as caught:
        load_bundle(str(path))
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text.removeprefix(f"{path} ")


def test_a_bundle_is_read_as_it_was_written(tmp_path):
    manifest = write_bundle(str(tmp_path / "bundle"))
    bundle = load_bundle(str(tmp_path / "bundle"))
    assert bundle.manifest == manifest
    assert (bundle.model_id, bundle.classes) == (manifest.model_id, ("cat", "owl"))
    assert (bundle.image_size_px, bundle.num_features) == (48, 1280)
    assert bundle.load_history() == [make_epoch(1), make_epoch(2, phase="finetune")]
    (golden,) = bundle.load_golden()
    assert (golden.file, golden.data, golden.probabilities.dtype) == ("golden/0.png", b"png", np.float32)
    assert golden.probabilities.tolist() == [0.25, 0.75]
    assert (tmp_path / "bundle" / "report.html").read_text() == manifest.model_id
    assert manifest.model_id[:12] in (tmp_path / "bundle" / "README.md").read_text()


def test_an_engine_gets_the_files_of_inference_alone(path):
    bundle = load_bundle(str(path))
    files = bundle.read_inference_files()
    assert set(files) == {MANIFEST, NETWORK, "golden/0.png", GOLDEN}
    assert set(bundle.read_saved_model()) == {"saved_model/saved_model.pb"}
    assert files["golden/0.png"] == b"png"


def test_files_are_unpacked_below_a_folder(tmp_path):
    unpack({"a/b/c": b"1", "d": b"2"}, tmp_path)
    assert ((tmp_path / "a" / "b" / "c").read_bytes(), (tmp_path / "d").read_bytes()) == (b"1", b"2")


def test_a_folder_without_a_manifest_is_not_a_bundle(tmp_path):
    assert refuse(tmp_path) == "is not a bundle: it holds no bundle.json; give what tlray train wrote"


@pytest.mark.parametrize(
    ("code", "kind", "rest"),
    [(Code.DENIED, BundleError, ""), (Code.TIMEOUT, OutageError, "; run the same command again")],
)
def test_a_bundle_that_is_out_of_reach_may_still_be_one(path, monkeypatch, code, kind, rest):
    def get(uri):
        raise FetchError(code, "no way")

    monkeypatch.setattr(storage, "get", get)
    with pytest.raises(kind) as caught:
        load_bundle(str(path))
    assert str(caught.value) == f"{path} cannot be read: no way{rest}"


@pytest.mark.parametrize(("found", "remedy"), [(1, "train or import the model again"), (FORMAT + 1, "update tlray")])
def test_another_format_is_refused_in_one_sentence(path, found, remedy):
    edit(path, MANIFEST, lambda manifest: {"format": found, "anything": manifest})
    assert refuse(path) == f"has bundle format {found}, this tlray reads {FORMAT}; {remedy}"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda m: m.pop("classes"), "the record lacks classes"),
        (lambda m: m.update(colour=1), "the record has an unknown field 'colour'"),
        (lambda m: m["architecture"].pop("num_classes"), "architecture lacks num_classes"),
        (lambda m: m["preprocessing"].update(size=1), "preprocessing has an unknown field 'size'"),
        (lambda m: m.update(model_id=3), "model_id takes str; got 3"),
        (lambda m: m.update(classes="cat"), 'classes takes a list; got "cat"'),
        (lambda m: m["classes"].append(None), "classes[2] takes str; got null"),
        (lambda m: m["architecture"].update(num_classes=2.0), "architecture.num_classes takes int; got 2.0"),
        (lambda m: m["architecture"].update(num_classes=True), "architecture.num_classes takes int; got true"),
        (lambda m: m["calibration"].update(temperature=float("nan")), "calibration.temperature takes a finite number"),
        (lambda m: m["training"]["config"].update(zoom=float("inf")), "training.config.zoom takes finite numbers"),
        (lambda m: m["files"].update({"model.keras": None}), "files.model.keras takes str; got null"),
    ],
)  # fmt: skip
def test_each_faulty_field_of_the_manifest_is_named(path, change, fault):
    edit(path, MANIFEST, lambda manifest: change(manifest) and None)
    text = refuse(path)
    assert text.startswith(f"is damaged: bundle.json: {fault}")
    assert text.endswith("; train or copy it again")
    with pytest.raises(BundleError, match=re.escape(fault)):
        read_manifest(str(path))


def test_a_bundle_of_another_decoder_is_refused(path):
    edit(path, MANIFEST, lambda manifest: manifest["preprocessing"].update(decoder="tlray.images.decode") and None)
    with pytest.raises(BundleError, match=r"was made for the decoder tlray\.images\.decode, .* train or import"):
        read_manifest(str(path))


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'"2"'])
def test_a_manifest_that_is_no_object_is_damaged(path, data):
    (path / MANIFEST).write_bytes(data)
    assert refuse(path).startswith("is damaged: bundle.json: ")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda h: h[1].pop("loss"), "[1] lacks loss"),
        (lambda h: h[0].update(best=True), "[0] has an unknown field 'best'"),
        (lambda h: h[0].update(epoch="1"), '[0].epoch takes int; got "1"'),
        (lambda h: h[1].update(val_loss=float("nan")), "[1].val_loss takes a finite number; got NaN"),
        (lambda h: h[0].update(phase="tail"), "[0].phase takes 'head' or 'finetune'; got \"tail\""),
    ],
)
def test_each_faulty_field_of_the_history_is_named(path, change, fault):
    edit(path, HISTORY, lambda history: change(history) and None, sign=False)
    bundle = load_bundle(str(path))
    with pytest.raises(BundleError) as caught:
        bundle.load_history()
    assert str(caught.value) == f"{path} is damaged: {HISTORY}: {fault}; train or copy it again"


def test_a_bundle_without_a_history_has_no_epochs(path):
    (path / HISTORY).unlink()
    assert load_bundle(str(path)).load_history() == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda g: g.pop("images"), "the record lacks images"),
        (lambda g: g["images"][0].update(extra=1), "images[0] has an unknown field 'extra'"),
        (lambda g: g["images"][0].update(file=1), "images[0].file takes str; got 1"),
        (lambda g: g["images"][0].update(probabilities=[0.5, float("nan")]), "images[0].probabilities[1] takes"),
    ],
)  # fmt: skip
def test_each_faulty_field_of_the_golden_record_is_named(path, change, fault):
    edit(path, GOLDEN, lambda golden: change(golden) and None)
    assert refuse(path).startswith(f"is damaged: {GOLDEN}: {fault}")


@pytest.mark.parametrize("probabilities", [[[1.0]], [[0.5, 0.5], [0.2, 0.3, 0.5]], []])
def test_golden_probabilities_are_of_the_classes(path, probabilities):
    images = [{"file": "golden/0.png", "class_name": "cat", "probabilities": row} for row in probabilities]
    edit(path, GOLDEN, lambda golden: {"images": images})
    assert refuse(path) == f"is damaged: {GOLDEN} holds no probabilities of its classes; train or copy it again"


@pytest.mark.parametrize("name", ["../secret.png", "golden/1.png", "report.html", "/etc/hostname"])
def test_a_golden_image_is_a_file_of_the_manifest(path, name):
    edit(path, GOLDEN, lambda golden: golden["images"][0].update(file=name))
    assert refuse(path) == f"is refused: {GOLDEN} names {name!r}, which bundle.json does not"


@pytest.mark.parametrize(
    "name",
    [
        "../escaped", "/etc/passwd", "golden/../../escaped", "golden/./0.png", "golden\\0.png", "c:/golden/0.png",
        "golden//0.png", "golden/", "saved_model", "bundle.json", "README.md", "model.keras/x", "golden/\n",
        "golden/\x00", "",
    ],
)  # fmt: skip
def test_a_name_outside_the_model_files_is_refused(path, name):
    edit(path, MANIFEST, lambda manifest: manifest["files"].update({name: "0" * 64}))
    text = refuse(path)
    assert text.startswith(f"is refused: its bundle.json names {name!r}, and a bundle's files are model.keras")


@pytest.mark.parametrize(
    "name", ["golden/0.jpeg", "golden/a/b.png", "saved_model/variables/x.index", "golden/größe.png"]
)
def test_a_name_below_the_folders_of_the_model_is_a_missing_file(path, name):
    edit(path, MANIFEST, lambda manifest: manifest["files"].update({name: "0" * 64}))
    assert refuse(path) == f"is not what was saved ({name} is missing); train or copy it again"


def test_a_name_that_no_file_can_have_is_a_fault_of_the_bundle(path):
    name = f"golden/{'x' * 300}.png"
    edit(path, MANIFEST, lambda manifest: manifest["files"].update({name: "0" * 64}))
    assert refuse(path) == f"is not what was saved ({name} cannot be read (File name too long)); train or copy it again"


def test_all_faults_are_named_at_once(path):
    (path / "golden" / "0.png").write_bytes(b"other")
    (path / "saved_model" / "saved_model.pb").unlink()
    assert "(golden/0.png was changed; saved_model/saved_model.pb is missing)" in refuse(path)


def test_an_edited_manifest_does_not_fit_its_model_id(path):
    edit(path, MANIFEST, lambda manifest: manifest.update(classes=["dog", "owl"]))
    assert "bundle.json was edited: its model id does not fit" in refuse(path)


def test_class_names_fit_the_outputs(path):
    edit(path, MANIFEST, lambda manifest: manifest["classes"].append("dog"))
    assert "3 class names for 2 outputs" in refuse(path)


@pytest.mark.parametrize("name", ["model.keras", "saved_model/saved_model.pb", GOLDEN])
def test_each_needed_file_is_listed(path, name):
    edit(path, MANIFEST, lambda manifest: manifest["files"].pop(name) and None)
    assert f"{name} is not listed" in refuse(path)


def test_code_in_the_model_is_refused_before_changed_files_are(tmp_path):
    threat = {**CONFIG, "config": {"layers": [{"class_name": "Lambda", "module": "keras.layers"}]}}
    path = tmp_path / "bundle"
    write_bundle(str(path), make_model_files(make_keras_file(threat), graph=make_graph(["EagerPyFunc"])))
    (path / "golden" / "0.png").unlink()
    text = refuse(path)
    assert text.startswith("is refused: model.keras holds keras.layers.Lambda, which is none of Keras")
    assert "saved_model holds EagerPyFunc, which no layer" in text


def test_reports_and_history_have_no_checksum(tmp_path):
    manifest = write_bundle(str(tmp_path / "bundle"))
    assert set(manifest.files) == set(make_model_files())
    (tmp_path / "bundle" / "report.html").unlink()
    assert load_bundle(str(tmp_path / "bundle")).manifest == manifest
