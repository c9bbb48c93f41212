"""A linear layer that reads the first features of a longer vector."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class PrefixLinear(nn.Linear):
    """W·x[…, :k] + b, where x may be longer than k = `in_features`.

    For features in the order of their use, of which the tail is left out but whose maker cannot be cut: what makes them also
    feeds other layers. Weights and names are a Linear's, so a state dict of one fits the other of the same size.
    """

    @classmethod
    def of(cls, linear: nn.Linear, features: int) -> PrefixLinear:
        """A layer with the weights of `linear` for its first `features` inputs, in its mode, on its device."""
        short = cls(features, linear.out_features, bias=linear.bias is not None, device="meta")
        weight = linear.weight.detach()[:, :features].clone()
        short.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
        if linear.bias is not None:
            short.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=linear.bias.requires_grad)
        return short.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # nn.Linear's own name for it
        """(…, out_features) from (…, D) with D ≥ in_features; the other D − in_features values are not read."""
        return F.linear(input[..., : self.in_features], self.weight, self.bias)
