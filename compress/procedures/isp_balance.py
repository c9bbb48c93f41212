"""Terms balanced by what each does to the weights: every one pushes with the same length, whatever its scale.

Source: Arhire, Timofte 2025 (arXiv 2505.10420) as released: w_k = 1 / (‖∇_θ L_k‖ + 1e-8), anew in every step.

A term's gradient is taken on the developed picture first, so that each frozen network is run backward for its own terms alone; the small
network in front is then run backward once a term for the norm, and once more for the sum. The sum reaches the engine as a scalar that is
linear in the picture and whose gradient is exactly the balanced one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SMALL = 1e-8
"""Keeps the weight of a term without a gradient finite."""


class Term(NamedTuple):
    """A term's value (scalar) and its gradient on the developed pictures, both detached."""

    value: Tensor
    gradient: Tensor


def term(value: Tensor, pictures: Tensor, *, again: bool = False) -> Term:
    """The term of a scalar computed from `pictures`; `again` keeps the graph for another term that shares it."""
    (gradient,) = torch.autograd.grad(value, pictures, retain_graph=again)
    return Term(value.detach(), gradient)


def length(gradients: Sequence[Tensor | None]) -> Tensor:
    """The L2 norm, a scalar, over all entries of all gradients; None counts as 0."""
    return torch.stack([g.norm() for g in gradients if g is not None]).norm()


def norms_on_weights(pictures: Tensor, parameters: Sequence[Tensor], terms: Mapping[str, Term]) -> dict[str, Tensor]:
    """‖∇_θ L_k‖ of every term, scalars: its gradient on `pictures`, pulled back to the parameters that made them."""
    return {
        name: length(torch.autograd.grad(pictures, parameters, grad_outputs=one.gradient, retain_graph=True, allow_unused=True))
        for name, one in terms.items()
    }


def balance(norms: Mapping[str, Tensor], strength: Mapping[str, float], *, by_norm: bool) -> dict[str, Tensor]:
    """The factor of every term: its strength, divided by (norm + 1e-8) with `by_norm`."""
    return {
        name: strength[name] / (norm + SMALL) if by_norm else torch.full_like(norm, strength[name])
        for name, norm in norms.items()
    }


def linear(tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """A scalar whose value is 0 and whose gradient on each tensor is the one given for it."""
    product = torch.stack([(t * g).sum() for t, g in zip(tensors, gradients, strict=True)]).sum()
    return product - product.detach()
