"""Weight masks: which weights of a network were pruned, kept with the network so that no later step brings one back.

A mask lies as plain data on the submodule that owns the parameter, not among its buffers: state dicts, exports and weight names
stay what they were. Structural edits cut it along with its parameter, a Bundle stores it, the training engine enforces it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from .errors import UserError, did_you_mean

ATTRIBUTE = "weight_masks"


def masks_of(module: nn.Module) -> dict[str, Tensor]:
    """Every mask by its parameter's name: bool, the parameter's shape, True = kept. Empty: nothing is masked."""
    return {f"{path}.{name}" if path else name: mask for path, name, _, mask in _masked(module)}


def masked_parameters(module: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """Every masked parameter with its mask."""
    return [(parameter, mask) for _, _, parameter, mask in _masked(module)]


def _masked(module: nn.Module) -> Iterator[tuple[str, str, nn.Parameter, Tensor]]:
    for path, part in module.named_modules():
        for name, mask in part.__dict__.get(ATTRIBUTE, {}).items():
            yield path, name, getattr(part, name), mask


@torch.no_grad()
def attach_masks(module: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """None; `module` has these masks in the place of those it had, and its pruned weights are 0.

    Raises UserError for a name that is no parameter of the network, and for a mask of another shape.
    """
    parameters = dict(module.named_parameters())
    for name, mask in masks.items():
        if name not in parameters:
            raise UserError(f"a mask is for {name!r}, which the network lacks: it was made for another one",
                            hint=did_you_mean(name, parameters))  # fmt: skip
        if mask.shape != parameters[name].shape:
            raise UserError(
                f"the mask of {name} has shape {tuple(mask.shape)}, the weights {tuple(parameters[name].shape)}",
                hint="masks belong to one architecture at one width: use those that were saved with this network",
            )
    drop_masks(module)
    for name, mask in masks.items():
        path, _, own = name.rpartition(".")
        parameter = parameters[name]
        keep = mask.to(device=parameter.device, dtype=torch.bool, copy=True)
        module.get_submodule(path).__dict__.setdefault(ATTRIBUTE, {})[own] = keep
        parameter.masked_fill_(~keep, 0)


def drop_masks(module: nn.Module) -> None:
    """None; nothing is masked any more. The weights stay as they are."""
    for part in module.modules():
        part.__dict__.pop(ATTRIBUTE, None)


def cut_mask(part: nn.Module, name: str, dim: int, kept: Iterable[int]) -> None:
    """None; the mask of one parameter of a submodule, where it has one, loses what the parameter loses along `dim`."""
    map_mask(part, name, lambda mask: mask.index_select(dim, torch.tensor(list(kept), dtype=torch.long)))


def map_mask(part: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """None; the mask of one parameter of a submodule, where it has one, is what `change` makes of it."""
    own = part.__dict__.get(ATTRIBUTE, {})
    if name in own:
        own[name] = change(own[name])


def inherit_masks(part: nn.Module, before: nn.Module) -> None:
    """None; a submodule that takes another one's place takes its masks."""
    if ATTRIBUTE in before.__dict__:
        part.__dict__[ATTRIBUTE] = dict(before.__dict__[ATTRIBUTE])


def density(masks: Mapping[str, Tensor]) -> float:
    """The share of the masked parameters' weights that is kept; 1 without masks."""
    total = sum(mask.numel() for mask in masks.values())
    return sum(int(mask.sum()) for mask in masks.values()) / total if total else 1.0


def leaked(module: nn.Module) -> list[str]:
    """The names of masked parameters in which a pruned weight is not 0: something went round the masks."""
    return [
        f"{path}.{name}" if path else name
        for path, name, parameter, mask in _masked(module)
        if bool(parameter.detach()[~mask.to(parameter.device)].any())
    ]


def admit(module: nn.Module) -> tuple[str, ...]:
    """The names of masked parameters that had been given a value where they were pruned: their masks are opened there."""
    names = tuple(leaked(module))
    for path, name, parameter, mask in _masked(module):
        if (f"{path}.{name}" if path else name) in names:
            mask.logical_or_(parameter.detach().to(mask.device) != 0)
    return names


def pack_masks(masks: Mapping[str, Tensor]) -> bytes:
    """The masks as a safetensors file: one bit a weight, deflated (a mask of 1 % costs about 0.1 bit a weight)."""
    packed = {
        name: torch.frombuffer(bytearray(zlib.compress(np.packbits(mask.cpu().numpy()).tobytes(), 9)), dtype=torch.uint8)
        for name, mask in masks.items()
    }
    return save_safetensors(packed)


def unpack_masks(content: bytes, shapes: Mapping[str, torch.Size], *, origin: str) -> dict[str, Tensor]:
    """The masks in a file of `pack_masks`, for parameters of these shapes. Raises UserError when it belongs to another network."""
    masks = {}
    for name, packed in load_safetensors(content).items():
        if name not in shapes:
            raise UserError(f"{origin} masks {name!r}, which the network lacks", hint=did_you_mean(name, shapes))
        count = shapes[name].numel()
        inflate = zlib.decompressobj()
        bits = inflate.decompress(packed.numpy().tobytes(), (count + 7) // 8)
        if len(bits) != (count + 7) // 8 or inflate.unconsumed_tail:
            raise UserError(f"the mask of {name} in {origin} has another size than its {count} weights", hint=_REMAKE)
        values = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=count)
        masks[name] = torch.from_numpy(values.astype(bool)).reshape(shapes[name])
    return masks


_REMAKE = "the Bundle is damaged; make it again"
