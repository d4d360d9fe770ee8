import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal

from kldiv import DiagonalNormal
from kldiv.distributions.parts import factorise, with_event_dims


def test_factorise_goes_through_every_layer():
    normal = Normal(torch.zeros(4, 3, 2), 1.0)
    for distribution in (normal, Independent(normal, 2), Independent(Independent(normal, 1), 1)):
        assert factorise(distribution).batch_shape == (4, 3, 2)
    assert factorise(Independent(DiagonalNormal(normal.loc, normal.loc), 1)).batch_shape == (4, 3, 2)
    assert factorise(MultivariateNormal(torch.zeros(4, 3), torch.eye(3))) is None


def test_with_event_dims():
    normal = Normal(torch.zeros(4, 3, 2), 1.0)
    for given in (normal, Independent(normal, 2), DiagonalNormal(normal.loc, normal.loc)):
        for dims in range(4):
            assert with_event_dims(given, dims).event_shape == (4, 3, 2)[3 - dims :]
    with pytest.raises(ValueError, match="not independent"):
        with_event_dims(MultivariateNormal(torch.zeros(3), torch.eye(3)), 0)
