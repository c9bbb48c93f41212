"""Metrics through artifacts: batches that the format takes, and the network's own figure beside."""

import numpy as np
import pytest
import torch

from trimtab.models.contract import Contract, TensorSpec
from trimtab.models.errors import UserError
from trimtab.scoring import predictor

CONTRACT = Contract(
    inputs=(TensorSpec(name="x", shape=("N", 3), layout="NC"),), outputs=(TensorSpec(name="y", shape=("N", 3), layout="NC"),)
)


def bounded(most, seen):
    def run(inputs):
        batch = len(inputs["x"])
        seen.append(batch)
        if batch > most:
            raise UserError(f"batch {batch} is above {most}")
        return {"y": 2 * inputs["x"]}

    return run


@pytest.mark.parametrize(("most", "largest"), [(1000, 64), (64, 64), (8, 8), (7, 2), (1, 1)])
def test_batches_are_as_large_as_the_artifact_takes(most, largest):
    seen = []
    predict = predictor(bounded(most, seen), CONTRACT)
    x = torch.randn(100, 3)
    np.testing.assert_array_equal(predict(x), 2 * x)
    assert max(batch for batch in seen if batch <= most) == largest
    before = len(seen)
    predict(x)
    assert max(seen[before:]) == largest  # what was found out is kept


def test_an_artifact_that_takes_nothing_says_why():
    with pytest.raises(UserError, match="batch 1 is above 0"):
        predictor(bounded(0, []), CONTRACT)(torch.randn(4, 3))


def test_a_fixed_batch_is_kept_to():
    seen = []
    fixed = CONTRACT.model_copy(update={"inputs": (TensorSpec(name="x", shape=(4, 3), layout="NC"),)})
    predictor(bounded(1000, seen), fixed)(torch.randn(12, 3))
    assert seen == [4, 4, 4]
