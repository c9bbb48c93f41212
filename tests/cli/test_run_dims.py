"""`run` on a network of free size: counted and timed at the test samples' size, or at the one that is asked for."""

from __future__ import annotations

import pytest
import torch

from trimtab.job import sample_dims, sized
from trimtab.models.contract import Contract, TensorSpec, image_classifier
from trimtab.models.errors import UserError


class Task:
    """Test samples of 4×24×40."""

    def samples(self, split):
        assert split == "test"
        return self

    def __getitems__(self, indices):
        return len(indices)

    def inputs(self, batch):
        return torch.zeros(batch, 4, 24, 40)


FREE = Contract(
    inputs=(TensorSpec(name="raw", shape=("N", 4, "h", "w"), layout="NCHW"),),
    outputs=(TensorSpec(name="rgb", shape=("N", 3, "H", "W"), layout="NCHW"),),
)


def test_what_is_left_out_is_the_samples_own():
    assert sample_dims(FREE, Task(), {}) == {"h": 24, "w": 40}
    assert sample_dims(FREE, Task(), {"w": 960}) == {"h": 24, "w": 960}
    assert sample_dims(FREE, Task(), {"h": 540, "w": 960}) == {"h": 540, "w": 960}


def test_a_fixed_network_has_none_and_its_stages_keep_their_identity():
    fixed = image_classifier(channels=3, height=8, width=8, classes=("a", "b"), mean=(), std=())
    assert sample_dims(fixed, Task(), {}) == {}
    assert sized({}) == []


def test_a_dimension_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="no free dimension 'H'"):
        sample_dims(FREE, Task(), {"H": 1080})
