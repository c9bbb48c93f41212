"""Scores and masks of blocks and groups of weights, for the patterns of `shape`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .shape import Pattern


def as_matrix(weight: Tensor) -> Tensor:
    """(O, K) of a weight (O, I, …): K runs over kernel positions, then input channels, as kernels store it (a bias: (O, 1))."""
    return weight.movedim(1, -1).reshape(len(weight), -1) if weight.ndim >= 2 else weight[:, None]


def as_weight(matrix: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `as_matrix`."""
    if len(shape) < 2:
        return matrix.reshape(shape)
    return matrix.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


def block_scores(weight_scores: Tensor, pattern: Pattern) -> Tensor:
    """The mean score of every block, (blocks down, blocks across); blocks at the edges may be smaller. Single weights: as they are."""
    if pattern.rows * pattern.columns == 1:
        return weight_scores
    matrix = as_matrix(weight_scores)
    pooled = F.avg_pool2d(matrix[None, None], (pattern.rows, pattern.columns), ceil_mode=True, count_include_pad=False)
    return pooled[0, 0]


def from_blocks(blocks: Tensor, shape: torch.Size, pattern: Pattern) -> Tensor:
    """A mask of `shape` from one bool per block."""
    if pattern.rows * pattern.columns == 1:
        return blocks
    rows, columns = shape[0], max(1, shape.numel() // shape[0])
    blocks = blocks.repeat_interleave(pattern.rows, 0)[:rows].repeat_interleave(pattern.columns, 1)[:, :columns]
    return as_weight(blocks, shape).contiguous()


def best_of_groups(weight_scores: Tensor, keep: int, group: int) -> Tensor:
    """The mask that keeps the `keep` highest of every `group` consecutive input channels, at every output and kernel position."""
    matrix = as_matrix(weight_scores)
    grouped = matrix.reshape(len(matrix), -1, group)
    best = torch.zeros_like(grouped, dtype=torch.bool).scatter_(2, grouped.topk(keep, dim=2).indices, value=True)
    return as_weight(best.reshape(matrix.shape), weight_scores.shape).contiguous()
