"""Networks whose own input is integers, as a sensor's counts are: which formats keep the type, and which refuse it in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trimtab.export.convert import ConversionError, convert, module_source
from trimtab.export.exporter import exporters
from trimtab.models.contract import Contract, TensorSpec
from trimtab.models.errors import UserError


class Counts(nn.Module):
    """Counts (N, 1, H, W) made real numbers, then one convolution."""

    def __init__(self, white: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.white, self.conv = white, nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.float() / self.white)


def contract(dtype, white):
    image = TensorSpec(name="raw", shape=("N", 1, "H", "W"), layout="NCHW", dtype=dtype, value_range=(0, white))
    return Contract(inputs=(image,), outputs=(TensorSpec(name="rgb", shape=("N", 3, "H", "W"), layout="NCHW"),))


def needs(name):
    if missing := exporters.entry(name).card.missing():
        pytest.skip(f"{name} packages not installed: {missing}")


@pytest.mark.parametrize("name", ["onnx", "tflite", "openvino"])
@pytest.mark.parametrize(("dtype", "white"), [("uint16", 65535.0), ("uint8", 255.0)])
def test_unsigned_counts_go_in_as_they_are(name, dtype, white, tmp_path):
    needs(name)
    source = module_source(Counts(white), contract(dtype, white), label="counts")
    (made,) = convert(source, [(name, "fp32")], tmp_path)
    assert made.ok, made.artifact.parity.reason
    assert made.artifact.contract.inputs[0].dtype == dtype
    runner = exporters.get(name).runner(made.artifact.path(made.folder), made.artifact.contract)
    laid = made.artifact.contract.inputs[0].layout
    # the whole range of the type: above 32 767 a signed reading would turn negative
    counts = np.linspace(0, white, 10 * 12).reshape(1, 1, 10, 12).astype(dtype)
    given = counts.transpose(0, 2, 3, 1) if laid == "NHWC" else counts
    (found,) = runner({"raw": np.ascontiguousarray(given)}).values()
    expected = source.reference({"raw": counts})["rgb"]
    expected = expected.transpose(0, 2, 3, 1) if laid == "NHWC" else expected
    # float32 rounding of sums of nine products of numbers below 1
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("coreml", "tensor 'raw' is uint16, Core ML arrays are float32, float16, int32"),
        ("executorch", "tensor 'raw' is uint16, which ExecuTorch's runtime does not take"),
        ("ncnn", "tensor 'raw' is uint16, ncnn arrays are float32"),
        ("mnn", "tensor 'raw' is uint16, MNN arrays are"),
    ],
)
def test_formats_without_the_type_say_so(name, said, tmp_path):
    needs(name)
    source = module_source(Counts(1023.0), contract("uint16", 1023.0), label="counts")
    with pytest.raises(ConversionError, match=said):
        convert(source, [(name, exporters.entry(name).card.defaults[0])], tmp_path)


def test_a_network_that_counts_in_sixteen_bits_is_refused():
    class Wraps(Counts):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.cat([x[:, :, 1:], x[:, :, :1]], dim=2))

    source = module_source(Wraps(1023.0), contract("uint16", 1023.0), label="counts")
    assert source.graph is None
    with pytest.raises(UserError, match=r"input 'raw' is uint16, and the network does Slice on it as it is"):
        source.traced()
