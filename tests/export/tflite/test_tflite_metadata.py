"""TFLite Metadata: every field comes back, the pixels' normalisation is the contract's, and the file still runs."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="needs trimtab[tflite]")

from tflite_requests import CONTRACT, user_source, verdict, write

from trimtab.export.tflite import metadata_schema
from trimtab.export.tflite.metadata import About, normalisation, read_metadata, with_metadata
from trimtab.models.contract import Contract, TensorSpec
from trimtab.models.errors import UserError


@pytest.fixture(scope="module")
def source():
    return user_source()


def test_every_field_comes_back(source, tmp_path):
    out = tmp_path / "m.tflite"
    write(source, "fp32", out, name="digits", version="2.1", author="A. Turing", licence="Apache-2.0")
    found = read_metadata(out)
    (graph,) = found.pop("subgraph_metadata")
    assert found == {
        "name": "digits",
        "description": "TFLite fp32 network, written by trimtab",
        "version": "2.1",
        "author": "A. Turing",
        "license": "Apache-2.0",
        "min_parser_version": "1.0.0",
        "files": {"labels.txt": "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n"},
    }
    (image,), (logits,) = graph["input_tensor_metadata"], graph["output_tensor_metadata"]
    (options,) = image.pop("process_units")
    scale, stats = options["options"]["NormalizationOptions"], image.pop("stats")
    np.testing.assert_allclose(scale["mean"], [0.4 * 255] * 3, rtol=1e-6)
    np.testing.assert_allclose(scale["std"], [0.2 * 255] * 3, rtol=1e-6)
    np.testing.assert_allclose(stats["min"], [-2] * 3, rtol=1e-6)
    np.testing.assert_allclose(stats["max"], [3] * 3, rtol=1e-6)
    assert image == {
        "name": "image",
        "description": "Image, normalised by the options given (float32 N×32×32×3)",
        "dimension_names": ["batch", "height", "width", "channel"],
        "content": {"content_properties": {"ImageProperties": {"color_space": 1, "default_size": {"width": 32, "height": 32}}}},
    }
    assert logits == {
        "name": "logits",
        "description": "One number per class (float32 N×10)",
        "content": {"content_properties": {"FeatureProperties": {}}},
        "associated_files": [{"name": "labels.txt", "description": "The class names, one a line", "type": 2}],
    }


@pytest.mark.parametrize(
    ("precision", "options"),
    [("fp32", {}), ("fp16", {}), ("int8", {}), ("int8", {"io": "uint8"}), ("int8-dynamic", {}), ("int16x8", {})],
    ids=str,
)
def test_files_with_metadata_run_and_are_proven(source, tmp_path, precision, options):
    out = tmp_path / "m.tflite"
    facts = write(source, precision, out, **options)
    assert read_metadata(out)["files"]
    with_it = verdict(source, facts, out, precision)
    assert with_it.ok
    plain = write(source, precision, out, metadata=False, **options)
    assert not zipfile.is_zipfile(out)
    with pytest.raises(UserError, match="holds no TFLite Metadata"):
        read_metadata(out)
    assert verdict(source, plain, out, precision).sqnr_db == with_it.sqnr_db
    assert plain.ops == facts.ops


def test_an_app_that_follows_the_metadata_feeds_what_the_network_was_trained_on(source, tmp_path):
    """Pixels 0…255 through the file's options are the contract's own normalisation."""
    out = tmp_path / "m.tflite"
    write(source, "fp32", out)
    (image,) = read_metadata(out)["subgraph_metadata"][0]["input_tensor_metadata"]
    options = image["process_units"][0]["options"]["NormalizationOptions"]
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32))
    ours = CONTRACT.inputs[0].normalised(pixels / 255)
    theirs = (pixels.transpose(0, 2, 3, 1) - np.array(options["mean"])) / np.array(options["std"])
    np.testing.assert_allclose(theirs.transpose(0, 3, 1, 2), ours, atol=1e-5)  # float32 rounding of values up to 3


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, None),
        ({"value_range": (0, 1)}, ([0.0], [255.0])),
        ({"value_range": (0, 255)}, ([0.0], [1.0])),
        ({"value_range": (-1, 1)}, ([127.5], [127.5])),
        ({"value_range": (0, 255), "mean": (127.5,), "std": (127.5,)}, ([127.5], [127.5])),
        ({"value_range": (0, 1), "mean": (0.5, 0.25, 0), "std": (0.5, 1, 2)}, ([127.5, 63.75, 0], [127.5, 255, 510])),
        ({"mean": (0.5,), "std": (0.5,)}, ([127.5], [127.5])),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_normalisation_in_pixels(given, wanted):
    found = normalisation(TensorSpec(name="x", shape=("N", 3, 8, 8), layout="NCHW", **given))
    assert (found is None) == (wanted is None)
    if wanted:
        np.testing.assert_allclose(found, wanted, atol=1e-9)


@pytest.mark.parametrize(("channels", "space"), [(1, {"color_space": 2}), (4, {}), (3, {"color_space": 1})])
def test_colours_and_free_sizes(source, tmp_path, channels, space):
    out = tmp_path / "m.tflite"
    write(source, "fp32", out, metadata=False)
    other = Contract(
        inputs=(TensorSpec(name="image", shape=(1, "H", "W", channels), layout="NHWC"), TensorSpec(name="k", shape=(1,))),
        outputs=CONTRACT.outputs,
    )
    out.write_bytes(with_metadata(out.read_bytes(), other, About("m", "d", "1")))
    image, number = read_metadata(out)["subgraph_metadata"][0]["input_tensor_metadata"]
    assert image["content"]["content_properties"]["ImageProperties"] == space  # 0, unknown, is the schema's default
    assert "process_units" not in image
    assert number["content"] == {"content_properties": {"FeatureProperties": {}}}
    assert read_metadata(out)["files"] == {}
    assert not zipfile.is_zipfile(out)


def test_class_names_that_do_not_fit_are_refused(source, tmp_path):
    out = tmp_path / "m.tflite"
    facts = write(source, "fp32", out, metadata=False)
    data, about = out.read_bytes(), About("m", "d", "1")
    few = facts.contract.model_copy(update={"classes": ("a", "b")})
    with pytest.raises(UserError, match=r"names 2 classes and no output has as many entries \('logits' N×10\)"):
        with_metadata(data, few, about)
    broken = facts.contract.model_copy(update={"classes": ("a\nb", *"cdefghijk")})
    with pytest.raises(UserError, match=r"'a\\nb' can't be written as one line"):
        with_metadata(data, broken, about)


def test_two_exports_are_equal_to_the_byte(source, tmp_path):
    for name in ("a", "b"):
        write(source, "fp32", tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_schema_refuses_foreign_fields_and_foreign_buffers():
    with pytest.raises(KeyError, match="ModelMetadata has no field 'nmae'"):
        metadata_schema.pack({"nmae": "x"})
    with pytest.raises(ValueError, match="its identifier is b'TFL3'"):
        metadata_schema.unpack(b"\x00\x00\x00\x00TFL3")
    assert metadata_schema.unpack(metadata_schema.pack({"name": "x"})) == {"name": "x"}
