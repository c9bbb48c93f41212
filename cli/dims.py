"""`export --free` and `--fix`: which dimensions of the artifact are free at run time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from .models.contract import Contract, TensorSpec
from .models.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

PARTS = ("batch", "size")
_SIZES = ("H", "W")
_OTHER = 32
"""What the second size differs by, when looking which outputs follow the image's."""


def with_dims(
    contract: Contract, *, free: Sequence[str], fix: Mapping[str, object], module: Callable[[], nn.Module]
) -> Contract:
    """The contract with the parts of `free` ("batch", "size") symbolic, and the symbols of `fix` replaced by numbers.

    `module` makes the network, which is run at two sizes to see which outputs grow with the image. Raises UserError for parts and
    symbols that are not there, sizes below 1, and a network that takes no other size.
    """
    for part in free:
        if part not in PARTS:
            raise UserError(f"--free {part}: no such dimensions", hint=did_you_mean(part, PARTS))
    if "batch" in free:
        contract = _mapped(contract, _batch)
    if "size" in free:
        contract = _sized(contract, module())
    return _fixed(contract, fix) if fix else contract


def _mapped(contract: Contract, change: Callable[[TensorSpec], TensorSpec]) -> Contract:
    return contract.model_copy(
        update={"inputs": tuple(map(change, contract.inputs)), "outputs": tuple(map(change, contract.outputs))}
    )


def _batch(spec: TensorSpec) -> TensorSpec:
    return spec if spec.default or not spec.shape else spec.model_copy(update={"shape": ("N", *spec.shape[1:])})


def _sized(contract: Contract, module: nn.Module) -> Contract:
    """Images of any height and width; the network says, by running, which axes of its outputs follow."""
    image = contract.inputs[0]
    if image.layout != "NCHW":
        raise UserError(
            f"--free size: the input {image.name!r} ({image.layout}) is no image", hint="leave it out; batch may be free"
        )
    grown = image.model_copy(update={"shape": (*image.shape[:2], *_SIZES)})
    free = contract.model_copy(update={"inputs": (grown, *contract.inputs[1:])})
    before, after = _shapes(contract, free, module)
    outputs = []
    for spec, small, large in zip(contract.outputs, before, after, strict=True):
        axes = zip(spec.shape, small, large, strict=True)
        shape = tuple(d if a == b else f"{spec.name}_{axis}" for axis, (d, a, b) in enumerate(axes))
        outputs.append(spec.model_copy(update={"shape": shape}))
    return free.model_copy(update={"outputs": tuple(outputs)})


def _shapes(contract: Contract, free: Contract, module: nn.Module) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The outputs' shapes at the contract's own size, and at one that is larger on both sides."""
    import torch

    from .models.outputs import entries

    own = contract.inputs[0].concrete(contract.example_dims(batch=1))
    height, width = own[2] + _OTHER, own[3] + 2 * _OTHER
    found = []
    for made, dims in ((contract, contract.example_dims()), (free, {**free.example_dims(), "H": height, "W": width})):
        inputs = [torch.from_numpy(array) for array in made.random_inputs(dims, seed=0).values()]
        try:
            with torch.inference_mode():
                returned = entries(module.eval()(*inputs))
        except Exception as error:
            first = (str(error).splitlines() or [""])[0][:200]
            raise UserError(
                f"--free size: the network does not take an image of {dims.get('H', own[2])}×{dims.get('W', own[3])}: {first}",
                hint="leave it out: its size is part of it (a flattened map before a linear layer, position embeddings)",
            ) from error
        found.append([tuple(tensor.shape) for tensor in returned.values()])
    return found[0], found[1]


def _fixed(contract: Contract, fix: Mapping[str, object]) -> Contract:
    known = contract.symbols
    for symbol, size in fix.items():
        if symbol not in known:
            raise UserError(
                f"--fix {symbol}={size}: the network has no free dimension {symbol!r}", hint=did_you_mean(symbol, known)
            )
        if not isinstance(size, int) or size < 1:
            raise UserError(f"--fix {symbol}={size}: a size is a whole number from 1 on", hint=f"--fix {symbol}=1")

    def change(spec: TensorSpec) -> TensorSpec:
        return spec.model_copy(update={"shape": tuple(fix.get(d, d) if isinstance(d, str) else d for d in spec.shape)})

    return _mapped(contract, change)
