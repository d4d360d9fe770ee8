import torch
from torch.distributions import Beta, TransformedDistribution

from kldiv.distributions.density import log_prob
from kldiv.distributions.precision import can_be_copied


def test_densities_off_the_support_are_zero_and_their_gradients_none():
    x = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    for q in (Beta(2.0, 2.0, validate_args=False), TransformedDistribution(Beta(2.0, 2.0), [], validate_args=False)):
        log = log_prob(q, x, can_be_copied(q))
        assert log.isfinite().tolist() == [False, True, False]
        (gradient,) = torch.autograd.grad(log[1], x)
        assert gradient.isfinite().all()
