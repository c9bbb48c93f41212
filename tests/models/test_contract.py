import numpy as np
import pytest
from pydantic import ValidationError

from trimtab.models.contract import Contract, TensorSpec, image_classifier


def spec(**changes):
    return TensorSpec(
        **{
            "name": "image",
            "shape": ("N", 3, "H", "W"),
            "layout": "NCHW",
            "mean": (0.1, 0.2, 0.3),
            "std": (0.5, 1, 2),
            **changes,
        }
    )


def test_normalisation_runs_over_the_channel_axis_in_either_layout():
    values = np.random.default_rng(0).uniform(0, 1, (2, 3, 4, 5)).astype(np.float32)
    expected = (values - np.array([0.1, 0.2, 0.3]).reshape(1, 3, 1, 1)) / np.array([0.5, 1, 2]).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(spec().normalised(values), expected, rtol=1e-6)  # float32 rounding
    flipped = spec().as_layout("NHWC").normalised(values.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(flipped.transpose(0, 3, 1, 2), expected, rtol=1e-6)


def test_random_inputs_are_seeded_and_inside_the_value_range():
    contract = image_classifier(channels=3, height=8, width=6, classes=("a", "b"), mean=(0.0,) * 3, std=(1.0,) * 3)
    one, two = (contract.random_inputs({"N": 4}, seed=s)["image"] for s in (1, 2))
    assert one.shape == (4, 3, 8, 6)
    assert one.dtype == np.float32
    assert 0 <= one.min() < one.max() <= 1
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(one, contract.random_inputs({"N": 4}, seed=1)["image"])


def test_symbols_are_filled_and_the_batch_defaults_to_one():
    assert spec().concrete({"H": 5, "W": 7}) == (1, 3, 5, 7)
    with pytest.raises(KeyError, match="W"):
        spec().concrete({"H": 5})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"std": (1.0,)}, "mean has 3 entries, std 1"),
        ({"std": (1.0, 0.0, 1.0)}, "must be positive"),
        ({"shape": ("N", 3)}, "wants 4 dimensions"),
        ({"shape": ("N", 0, 4, 4)}, "below 1"),
        ({"dtype": "complex64"}, "float32"),
    ],
)
def test_an_inconsistent_tensor_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        spec(**changes)


def test_tensor_names_must_differ():
    with pytest.raises(ValidationError, match="must all differ"):
        Contract(inputs=(spec(),), outputs=(spec(),))
