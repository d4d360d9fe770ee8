"""The coefficient of the adaptive gradient: how much of the score to add to what sticks the landing."""

import itertools

import torch
from torch import Tensor

from kldiv.distributions import Pair
from kldiv.monte_carlo.estimators import sticking_the_landing

__all__ = [
    "fit_coefficients",
    "leaves_of",
]


_GROUPS = 16  # of units, whose gradients the coefficient is fitted to: each costs two backward passes


def fit_coefficients(pair: Pair, sample: Tensor, batch_dims: int = 1) -> Tensor | None:
    r"""For each unit, the c in [0, 1] that over all other units makes the variance of t + c s least.

    .. math:: c_g = -\frac{\sum_d \mathrm{Cov}_{h \ne g}(t_{hd}, s_{hd})}{\sum_d \mathrm{Var}_{h \ne g}(s_{hd})}

    t is the gradient that sticks the landing and s the score, each of a group of units; there are up to 16 groups. d
    runs over the parameters of p, or over all leaves of its graph where these are not known.

    Args:
        sample: (units, points, \*batch, \*event), with its graph.
        batch_dims: where each parameter begins with so many dimensions of the batch, every element of these has a
            coefficient of its own; else there is one for all.
    Returns: coefficients without a graph that broadcast to (units, points, \*batch); ``None`` where p wants no
        gradient.
    """
    _, _, landing = sticking_the_landing(pair, sample, "adaptive")
    score = pair.log_p(sample.detach())
    if not score.requires_grad:
        return None
    parameters = pair.parameters or leaves_of(score)
    units, batch = len(score), score.shape[2:]
    own = batch[:batch_dims]
    if not all(t.shape[:batch_dims] == own for t in parameters):
        own = torch.Size()
    groups = min(units, _GROUPS)
    ends = list(itertools.pairwise(units * g // groups for g in range(groups + 1)))

    def gradient(terms: Tensor) -> Tensor:
        r"""Of the sum of the terms, (\*own, parameters)."""
        found = torch.autograd.grad(
            terms.sum(), parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        flat = [g.flatten(len(own)) if g.ndim > len(own) else g[..., None] for g in found]
        return torch.cat([g.double() for g in flat], -1)

    all_t, all_s = gradient(landing), gradient(score)
    t_s, s_s, t_s_of_others, s_s_of_others = [], [], [], []
    for start, stop in ends:  # of each group four numbers: the gradients themselves may be as large as the network
        t, s = gradient(landing[start:stop]), gradient(score[start:stop])
        t_s.append((t * s).sum(-1))
        s_s.append((s * s).sum(-1))
        t_s_of_others.append(((all_t - t) * (all_s - s)).sum(-1))
        s_s_of_others.append(((all_s - s) * (all_s - s)).sum(-1))
    covariance, variance = _without_own(t_s, t_s_of_others), _without_own(s_s, s_s_of_others)
    coefficients = torch.where(variance > 0, -covariance / variance, 0.0).nan_to_num(0.0).clamp(0, 1)
    sizes = torch.tensor([stop - start for start, stop in ends], device=score.device)
    coefficients = coefficients.repeat_interleave(sizes, 0, output_size=units).to(score.dtype)
    return coefficients.reshape(units, 1, *own, *[1] * (len(batch) - len(own)))


def _without_own(products: list[Tensor], of_sums: list[Tensor]) -> Tensor:
    r"""For each group g, a multiple of the covariance among the G - 1 others.

    .. math:: \sum_{h \ne g} t_h s_h - \frac{\left(\sum_{h \ne g} t_h\right)\left(\sum_{h \ne g} s_h\right)}{G - 1}

    Args:
        products: :math:`t_g s_g` of each group.
        of_sums: the product of the two sums over its others.
    """
    return sum(products) - torch.stack(products) - torch.stack(of_sums) / (len(products) - 1)


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
