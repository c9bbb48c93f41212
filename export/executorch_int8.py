"""ExecuTorch in integers: XNNPACK's own quantiser, per-channel weights, and the least and greatest values that flow."""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

from ..models.contract import Contract
from .executorch_lower import Ranges, program_of, unguarded
from .exporter import Tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

_EPS = 2**-12
"""The least scale, as XNNPACK's own configuration has it."""


def quantised(
    module: nn.Module, example: tuple[Tensor, ...], contract: Contract, ranges: Ranges, *, feeds: tuple[Tensors, ...]
) -> nn.Module:
    """`module` as a graph that rounds to int8 and back where XNNPACK computes in integers; its ranges hold all of `feeds`."""
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    graph = program_of(module, example, contract, ranges).module()
    with warnings.catch_warnings(), torch.no_grad(), unguarded():
        warnings.simplefilter("ignore")
        prepared = prepare_pt2e(graph, XNNPACKQuantizer().set_global(_min_max()))
        for feed in feeds:
            prepared(*(torch.from_numpy(feed[spec.name]) for spec in contract.inputs))
        return convert_pt2e(prepared)


def _min_max() -> Any:
    """XNNPACK's symmetric per-channel configuration, with min/max observers in place of histograms."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import get_symmetric_quantization_config
    from torchao.quantization.pt2e import MinMaxObserver

    usual = get_symmetric_quantization_config(is_per_channel=True)

    def observed(spec: Any) -> Any:
        return dataclasses.replace(spec, observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=_EPS))

    return dataclasses.replace(
        usual, input_activation=observed(usual.input_activation), output_activation=observed(usual.output_activation)
    )
