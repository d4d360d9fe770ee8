"""The coefficient of the adaptive gradient: how much of the score to add to what sticks the landing."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

from kldiv.distributions import log_prob
from kldiv.monte_carlo.estimators import sticking_the_landing

__all__ = [
    "fit_coefficients",
    "leaves_of",
]


_GROUPS = 16  # of units, whose gradients the coefficient is fitted to: each costs two backward passes


def fit_coefficients(
    p: Distribution, q: Distribution, sample: Tensor, parameters: Sequence[Tensor] = (), batch_dims: int = 1
) -> Tensor | None:
    r"""For each unit, the c in [0, 1] that over all other units makes the variance of t + c s least.

    .. math:: c_g = -\frac{\sum_d \mathrm{Cov}_{h \ne g}(t_{hd}, s_{hd})}{\sum_d \mathrm{Var}_{h \ne g}(s_{hd})}

    t is the gradient that sticks the landing and s the score, of up to 16 groups of units, d runs over parameters.

    Args:
        sample: (units, points, \*batch, \*event), with its graph.
        parameters: the tensors p is made of. Where each begins with the first ``batch_dims`` dimensions of the batch,
            every element of these has a coefficient of its own; else there is one for all. None given: all leaves.
    Returns: coefficients without a graph that broadcast to (units, points, \*batch); ``None`` where p wants no
        gradient.
    """
    _, _, landing = sticking_the_landing(p, q, sample, "adaptive")
    score = log_prob(p, sample.detach())
    if not score.requires_grad:
        return None
    parameters = list(parameters) or leaves_of(score)
    units, batch = len(score), score.shape[2:]
    own = batch[:batch_dims]
    if not all(t.shape[:batch_dims] == own for t in parameters):
        own = torch.Size()
    groups = min(units, _GROUPS)
    of_group = [units * g // groups for g in range(groups + 1)]

    def gradient(terms: Tensor, start: int = 0, stop: int = units) -> Tensor:
        found = torch.autograd.grad(
            terms[start:stop].sum(), parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat(
            [g.flatten(len(own)).double() if g.ndim > len(own) else g[..., None].double() for g in found], -1
        )

    t_all, s_all = gradient(landing), gradient(score)
    t_s: list[Tensor] = []
    s_s: list[Tensor] = []
    t_rest_s_rest: list[Tensor] = []
    s_rest_s_rest: list[Tensor] = []
    for start, stop in itertools.pairwise(of_group):
        t, s = gradient(landing, start, stop), gradient(score, start, stop)
        for products, left, right in (
            (t_s, t, s),
            (s_s, s, s),
            (t_rest_s_rest, t_all - t, s_all - s),
            (s_rest_s_rest, s_all - s, s_all - s),
        ):
            products.append((left * right).sum(-1))
    covariance, variance = (
        sum(each) - torch.stack(each) - torch.stack(of_rest) / (groups - 1)
        for each, of_rest in ((t_s, t_rest_s_rest), (s_s, s_rest_s_rest))
    )
    coefficients = torch.where(variance > 0, -covariance / variance, 0.0).nan_to_num(0.0).clamp(0, 1)
    sizes = torch.tensor([stop - start for start, stop in itertools.pairwise(of_group)], device=score.device)
    coefficients = coefficients.repeat_interleave(sizes, 0, output_size=units).to(score.dtype)
    return coefficients.reshape(units, 1, *own, *[1] * (len(batch) - len(own)))


def leaves_of(output: Tensor) -> list[Tensor]:
    """The leaf tensors that want a gradient from ``output``, found in its graph."""
    found: dict[int, Tensor] = {}
    seen, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        waiting.extend(function for function, _ in node.next_functions)
    return list(found.values())
