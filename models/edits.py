"""One structural edit of a network, as data, and how it is done: channels cut out of a module or parameter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from .errors import UserError
from .masks import cut_mask, inherit_masks, map_mask
from .prefix import PrefixLinear

Side = Literal["out", "in", "param", "prefix"]


class Edit(BaseModel):
    """Kept channels along one dimension of one module or parameter.

    `path` is a module's name (side "out", "in" or "prefix") or a bare parameter's (side "param", along `dim`). `kept` indexes the
    dimension as it was in the *original* architecture, in ascending order; `size` is that original size. "prefix" cuts the
    inputs of a linear layer that goes on being fed all of them: it reads the first ones, so `kept` is 0, 1, … k−1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    side: Side
    size: int
    kept: tuple[int, ...]
    dim: int = 0


def cut(root: nn.Module, edit: Edit) -> None:
    """None; `root` is cut in place. Raises UserError when the edit is for another network."""
    if edit.side == "param":
        owner_path, _, name = edit.path.rpartition(".")
        owner = submodule(root, owner_path)
        parameter = getattr(owner, name, None)
        if not isinstance(parameter, Tensor):
            raise UserError(f"the surgery plan edits the parameter {edit.path!r}, which the network lacks", hint=HINT)
        _expect(edit, parameter.shape[edit.dim])
        setattr(
            owner, name, nn.Parameter(select(parameter.detach(), edit.dim, edit.kept), requires_grad=parameter.requires_grad)
        )
        cut_mask(owner, name, edit.dim, edit.kept)
        return
    if edit.side == "prefix":
        _shorten(root, edit)
        return
    _cut_module(submodule(root, edit.path), edit)


def _shorten(root: nn.Module, edit: Edit) -> None:
    """The linear layer at the edit's path replaced by one that reads its first inputs alone."""
    layer = submodule(root, edit.path)
    if not edit.path or not isinstance(layer, nn.Linear) or type(layer) not in (nn.Linear, PrefixLinear):
        raise UserError(
            f"the surgery plan shortens {edit.path!r}, a {type(layer).__name__}: only a Linear inside a network can be",
            hint=HINT,
        )
    _expect(edit, layer.in_features)
    if not edit.kept or edit.kept != tuple(range(len(edit.kept))):
        raise UserError(f"the surgery plan's prefix of {edit.path!r} is not the first of its inputs", hint=HINT)
    owner_path, _, name = edit.path.rpartition(".")
    short = PrefixLinear.of(layer, len(edit.kept))
    inherit_masks(short, layer)
    cut_mask(short, "weight", 1, edit.kept)
    setattr(submodule(root, owner_path), name, short)


HINT = "the Bundle's plan and its architecture do not belong together; check --model"


def submodule(root: nn.Module, path: str) -> nn.Module:
    """The module at `path`. Raises UserError when there is none."""
    try:
        return root.get_submodule(path)
    except AttributeError:
        raise UserError(f"the surgery plan edits {path!r}, which the network lacks", hint=HINT) from None


def _expect(edit: Edit, size: int) -> None:
    if size != edit.size:
        raise UserError(
            f"the surgery plan expects {edit.size} channels at {edit.path} ({edit.side}), the network has {size}", hint=HINT
        )


def select(tensor: Tensor, dim: int, kept: Iterable[int]) -> Tensor:
    """A copy of the kept positions of `tensor` along `dim`."""
    return tensor.index_select(dim, torch.tensor(list(kept), dtype=torch.long)).clone()


def _shrink(module: nn.Module, name: str, dim: int, kept: tuple[int, ...]) -> None:
    """Cuts a parameter or buffer of a module, when it has one of that name."""
    tensor = getattr(module, name, None)
    if tensor is None:
        return
    cut = select(tensor.detach(), dim, kept)
    setattr(module, name, nn.Parameter(cut, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else cut)
    cut_mask(module, name, dim, kept)


def _cut_module(module: nn.Module, edit: Edit) -> None:
    """One module cut along its output or input channels, attributes included."""
    kept = edit.kept
    if isinstance(module, nn.modules.conv._ConvNd):
        _cut_conv(module, edit)
    elif isinstance(module, nn.Linear):
        _cut_linear(module, edit)
    elif isinstance(module, nn.LayerNorm):
        _expect(edit, module.normalized_shape[-1])
        for name in ("weight", "bias"):
            _shrink(module, name, -1, kept)
        module.normalized_shape = (*module.normalized_shape[:-1], len(kept))
    else:
        _cut_per_channel(module, edit)


_PER_CHANNEL: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm), "num_features"),
    ((nn.GroupNorm,), "num_channels"),
    ((nn.PReLU,), "num_parameters"),
)


def _cut_per_channel(module: nn.Module, edit: Edit) -> None:
    """A module with one weight a channel, cut."""
    for types, attribute in _PER_CHANNEL:
        if isinstance(module, types):
            _expect(edit, getattr(module, attribute))
            for name in ("weight", "bias", "running_mean", "running_var"):
                _shrink(module, name, 0, edit.kept)
            setattr(module, attribute, len(edit.kept))
            return
    raise UserError(f"the surgery plan edits {edit.path!r}, a {type(module).__name__}, which trimtab can't cut", hint=HINT)


def _cut_linear(module: nn.Linear, edit: Edit) -> None:
    out = edit.side == "out"
    _expect(edit, module.out_features if out else module.in_features)
    _shrink(module, "weight", 0 if out else 1, edit.kept)
    if out:
        _shrink(module, "bias", 0, edit.kept)
        module.out_features = len(edit.kept)
    else:
        module.in_features = len(edit.kept)


def _cut_conv(module: nn.modules.conv._ConvNd, edit: Edit) -> None:
    """A convolution cut along one side. A depthwise one is cut on both sides at once: its groups are its channels."""
    kept, out = edit.kept, edit.side == "out"
    _expect(edit, module.out_channels if out else module.in_channels)
    if module.groups > 1 and module.groups == module.in_channels == module.out_channels:
        if out:  # its groups are its channels: one edit cuts both sides
            _shrink(module, "weight", 0, kept)
            _shrink(module, "bias", 0, kept)
            module.out_channels = module.in_channels = module.groups = len(kept)
        return
    out_dim, in_dim = (1, 0) if module.transposed else (0, 1)
    if out:
        if module.transposed and module.groups > 1:
            _shrink(module, "weight", out_dim, _within_group(kept, edit.size, module.groups))
        else:
            _shrink(module, "weight", out_dim, kept)
        _shrink(module, "bias", 0, kept)
        module.out_channels = len(kept)
    elif module.groups > 1 and not module.transposed:
        # weight[:, in/groups]: every group must keep the same positions for the cut to be one slice
        _cut_grouped_inputs(module, edit)
        module.in_channels = len(kept)
    else:
        _shrink(module, "weight", in_dim, kept)
        module.in_channels = len(kept)


def _within_group(kept: tuple[int, ...], size: int, groups: int) -> tuple[int, ...]:
    """The kept positions inside the first group."""
    return tuple(k for k in kept if k < size // groups)


def _cut_grouped_inputs(module: nn.modules.conv._ConvNd, edit: Edit) -> None:
    per_group = edit.size // module.groups
    inside = [[k - g * per_group for k in edit.kept if g * per_group <= k < (g + 1) * per_group] for g in range(module.groups)]
    if len({len(kept) for kept in inside}) != 1:
        raise UserError(f"the surgery plan keeps unequal inputs per group of {edit.path}", hint=HINT)

    def kept_inputs(weight: Tensor) -> Tensor:
        rows = torch.tensor_split(weight, module.groups, dim=0)
        return torch.cat([select(row, 1, kept) for row, kept in zip(rows, inside, strict=True)])

    module.weight = nn.Parameter(kept_inputs(module.weight.detach()), requires_grad=module.weight.requires_grad)
    map_mask(module, "weight", kept_inputs)
