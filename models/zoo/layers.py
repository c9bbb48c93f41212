"""What several stock networks share: channel rounding, argument checks, initialisation."""

from __future__ import annotations

from torch import nn

from ..errors import UserError


def make_divisible(value: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `value`, at least `divisor` and never more than 10 % below `value`.

    The rounding rule of MobileNet (Sandler et al. 2018), which fixes the channel counts of its published widths.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def scaled(channels: int, width: float) -> int:
    """`channels · width`, rounded, at least 1."""
    return max(1, round(channels * width))


def check_arguments(*, num_classes: int, in_channels: int, width: float = 1.0) -> None:
    """None, when a network can be built from these. Raises UserError that names the value and its range."""
    if num_classes < 1:
        raise UserError(f"num_classes={num_classes} must be 1 or more", hint="give the number of classes of the task")
    if in_channels < 1:
        raise UserError(f"in_channels={in_channels} must be 1 or more", hint="1 for grey images, 3 for colour")
    if not 0 < width <= 16:
        raise UserError(
            f"width={width} must be above 0 and at most 16", hint="1.0 is the published network, 0.5 half its channels"
        )


def check_stem_stride(stem_stride: int) -> None:
    """None, when the first convolution can step by `stem_stride`. Raises UserError otherwise."""
    if stem_stride not in (1, 2):
        raise UserError(
            f"stem_stride={stem_stride} must be 1 or 2", hint="2 is published; 1 keeps small images (32×32) large enough"
        )


def initialise(module: nn.Module, *, linear_std: float | None = None) -> None:
    """None; sets convolutions to He-normal (fan-out, He et al. 2015) and batch norms to identity.

    `linear_std` draws the linear layers from N(0, linear_std²) with zero bias; None leaves them at torch's default.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear) and linear_std is not None:
            nn.init.normal_(layer.weight, std=linear_std)
            nn.init.zeros_(layer.bias)
