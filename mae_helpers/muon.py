"""Muon, the optimizer for weight matrices that `make_optimizers` offers beside AdamW.

PyTorch has one, too (`torch.optim.Muon`, since 2.9). It takes one matrix after another, and always in bf16, which many
processors only emulate. The blocks of a transformer repeat their shapes, so here all matrices of a shape are one batched
product, in bf16 where training is, too. The updates are those of its `adjust_lr_fn="match_rms_adamw"`, up to rounding.
"""
from __future__ import annotations

import math

import torch

from .config import InputError


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made equally long in all directions (Jordan et al. 2024), for matrices only.

    An update of a matrix [a, b] is scaled by 0.2 √max(a, b): its entries are then about as large as AdamW's, so that a
    learning rate means the same for both (Liu et al. 2025, arXiv 2502.16982, section 2.2). Weight decay is AdamW's. Weights
    and momentum stay in fp32; `dtype` is that of the products. Raises `InputError` for a parameter that is no matrix.
    """

    dtype = torch.float32                           # of an optimizer that was copied or unpickled

    def __init__(self, params, lr: float = 1e-3, weight_decay: float = 0.0, momentum: float = 0.95,
                 dtype: torch.dtype = torch.float32):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))
        self.dtype = dtype                          # of this machine, so no part of a checkpoint
        for parameter in (each for group in self.param_groups for each in group["params"]):
            if parameter.ndim != 2:
                raise InputError(f"Muon got a parameter of shape {list(parameter.shape)}: it takes matrices only.")

    @torch.no_grad()
    def step(self) -> None:
        same_shape: dict[torch.Size, list] = {}
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    same_shape.setdefault(matrix.shape, []).append((matrix, group))
        for members in same_shape.values():
            self._update(*zip(*members))

    def _update(self, matrices: tuple[torch.Tensor, ...], groups: tuple[dict, ...]) -> None:
        """One step of matrices that share a shape; each has its group's learning rate and weight decay."""
        memory = groups[0]["momentum"]
        gradients, momenta = [matrix.grad for matrix in matrices], [self._momentum(matrix) for matrix in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - memory)
        ahead = torch.stack(gradients).lerp_(torch.stack(momenta), memory)          # Nesterov's momentum
        change = orthogonalize(ahead.to(self.dtype)).float() * (-0.2 * math.sqrt(max(matrices[0].shape)))
        torch._foreach_mul_(matrices, [1 - group["lr"] * group["weight_decay"] for group in groups])
        torch._foreach_add_(matrices, torch._foreach_mul(change.unbind(), [group["lr"] for group in groups]))

    def _momentum(self, matrix: torch.Tensor) -> torch.Tensor:
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        return state["momentum_buffer"]


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Nearly U Vᵀ of each matrix's singular value decomposition U S Vᵀ: [K, a, b] → [K, a, b], in the same precision.

    Five steps of a polynomial push all singular values but the tiniest to between about 0.7 and 1.2, with matrix products
    only (Jordan et al. 2024, from whom the three numbers are). Rounding to bf16 does it no harm.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices                       # the products X Xᵀ are then as small as they can be
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # no singular value above 1, or the steps diverge
    for _ in range(5):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x
