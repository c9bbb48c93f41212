"""Every operator against ONNX Runtime, at two sizes of its free dimensions."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="needs trimtab[tflite]")

from tflite_op_table import CASES
from tflite_support import Case, export, reference

SIZES = ({"N": 3, "H": 10, "W": 14, "L": 9, "K": 3}, {"N": 2, "H": 12, "W": 8, "L": 12, "K": 5})


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{case.id}" for i, case in enumerate(CASES)])
def test_op_computes_what_onnx_runtime_computes(case: Case, tmp_path):
    """Tolerance: `atol` absolute (2e-5 by default: float32 sums of a few hundred terms of size one), booleans and integers exact."""
    model = case.model()
    converted = export(model, tmp_path)
    for seed, sizes in enumerate(SIZES):
        feeds = case.feeds(model, sizes, seed)
        wanted = reference(model, feeds)
        found = converted(feeds)
        for name, array in wanted.items():
            assert found[name].shape == array.shape
            if array.dtype.kind == "f":
                np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=case.atol)
            else:
                np.testing.assert_array_equal(found[name].astype(array.dtype), array)
