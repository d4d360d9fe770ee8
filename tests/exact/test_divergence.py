import mpmath
import pytest
import torch
from torch.distributions import (
    Categorical,
    Gamma,
    Gumbel,
    Independent,
    Kumaraswamy,
    Laplace,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
    Uniform,
)

import kldiv
from kldiv import DiagonalNormal, kl_divergence
from tests.test_functional import true_kl_normal


def normals():
    generator = torch.Generator().manual_seed(0)
    mean, log_var = (torch.randn(4, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    scale = torch.exp(0.5 * log_var)
    return {
        "diagonal": DiagonalNormal(mean, log_var),
        "independent": Independent(Normal(mean, scale), 1),
    }


@pytest.mark.parametrize("left", ["diagonal", "independent"])
@pytest.mark.parametrize("right", ["diagonal", "independent"])
@pytest.mark.parametrize("divergence", [kl_divergence, torch.distributions.kl_divergence])
def test_diagonal_normals_with_one_another(left, right, divergence):
    p, q = normals()[left], normals()[right]
    q = (
        type(q)(q.mean.flip(0), q.log_var.flip(0))
        if right == "diagonal"
        else Independent(Normal(q.mean.flip(0), q.stddev.flip(0)), 1)
    )
    expected = kldiv.functional.kl_normal(p.mean, p.variance.log(), q.mean, q.variance.log()).sum(-1)
    torch.testing.assert_close(divergence(p, q), expected, rtol=1e-10, atol=0)


def test_scalar_diagonal_normal_with_normal():
    mean, log_var = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    p, q = DiagonalNormal(mean, log_var, event_dim=0), Normal(torch.zeros(3).double(), torch.ones(3).double())
    torch.testing.assert_close(kl_divergence(p, q), kldiv.functional.kl_normal(mean, log_var))
    expected = kldiv.functional.kl_normal(torch.zeros(3).double(), torch.zeros(3).double(), mean, log_var)
    torch.testing.assert_close(kl_divergence(q, p), expected)


@pytest.mark.parametrize("distance", [1.0, 1e-2, 1e-4, 1e-6])
def test_normals_given_by_scales_against_fifty_digits(distance):
    generator = torch.Generator().manual_seed(0)
    scale = torch.exp(torch.randn(100, generator=generator))
    p = Normal(torch.randn(100, generator=generator), scale)
    q = Normal(p.loc * (1 + distance), scale * (1 + distance))
    for value, *parameters in zip(kl_divergence(p, q), p.loc, p.scale, q.loc, q.scale, strict=True):
        with mpmath.workdps(50):
            mean_p, scale_p, mean_q, scale_q = (mpmath.mpf(v.item()) for v in parameters)
            ratio = (scale_p / scale_q) ** 2
            truth = (ratio - 1 - mpmath.log(ratio) + ((mean_p - mean_q) / scale_q) ** 2) / 2
        assert abs(value.item() - truth) <= 1e-6 * truth


@pytest.mark.parametrize(
    ("p", "q", "truth"),
    [
        ((0.0, 1e-30), (0.0, 1.0), 68.577553),
        ((0.0, 1.0), (1e-4, 1.0), 5e-9),
        ((0.0, 1.0), (0.0, 1.0), 0.0),
    ],
)
def test_normals_where_torch_fails(p, q, truth):
    p, q = (Normal(*map(torch.tensor, parameters)) for parameters in (p, q))
    assert kl_divergence(p, q).item() == pytest.approx(truth, rel=1e-6)
    assert kl_divergence(p, q).dtype == torch.float32


def test_the_wider_dtype_of_the_two_is_that_of_the_result():
    narrow, wide = Normal(torch.zeros(2), torch.ones(2)), Normal(torch.zeros(2).double(), torch.ones(2).double())
    assert kl_divergence(narrow, wide).dtype == kl_divergence(wide, narrow).dtype == torch.float64
    half = Normal(torch.zeros(2).half(), torch.full((2,), 300.0).half())
    assert kl_divergence(half, half).dtype == torch.float32
    assert kl_divergence(half, narrow).isfinite().all()


def test_log_variances_are_used_as_they_were_given():
    mean = torch.zeros(1)
    p, q = (DiagonalNormal(mean, torch.tensor([value])) for value in (1e-7, 0.0))
    assert kl_divergence(p, q).item() == pytest.approx(float(true_kl_normal(0, p.log_var.item())), rel=1e-6)


def test_independents_of_unequal_depth_and_of_torch_pairs():
    base = Laplace(torch.randn(4, 3, 2), 1.0)
    other = Laplace(torch.zeros(3, 2), 2.0)
    nested, flat = Independent(Independent(base, 1), 1), Independent(other, 2)
    expected = torch.distributions.kl_divergence(base, other).sum((-1, -2))
    torch.testing.assert_close(kl_divergence(nested, flat), expected)
    torch.testing.assert_close(kl_divergence(Independent(base, 2), flat), expected)
    torch.testing.assert_close(
        kl_divergence(Independent(base, 0), Independent(other, 0)), torch.distributions.kl_divergence(base, other)
    )


def test_torch_closed_forms_are_candidates_and_take_the_broadcast_shape():
    p, q = Gamma(torch.tensor(2.0), 1.0), Gamma(torch.rand(3) + 1, 1.0)
    torch.testing.assert_close(kl_divergence(p, q), torch.distributions.kl_divergence(p.expand((3,)), q))
    to_bounded = kl_divergence(Normal(torch.tensor(0.0), 1.0), Uniform(torch.zeros(3), torch.ones(3)))
    assert to_bounded.tolist() == [float("inf")] * 3  # torch's own has the shape of p
    p, q = MultivariateNormal(torch.zeros(2), torch.eye(2)), MultivariateNormal(torch.ones(2), torch.eye(2))
    torch.testing.assert_close(kl_divergence(p, q), torch.tensor(1.0))


def test_no_closed_form_names_both_types_and_a_call_that_works():
    p, q = StudentT(torch.full((2,), 3.0)), Laplace(torch.zeros(2), 1.0)
    with pytest.raises(
        NotImplementedError, match=r"StudentT \|\| Laplace.*kl_quadrature\(p, q\).*register_kl\(StudentT"
    ):
        kl_divergence(p, q)
    mixture = MixtureSameFamily(Categorical(torch.ones(4, 3)), Independent(Normal(torch.zeros(4, 3, 2), 1.0), 1))
    with pytest.raises(NotImplementedError, match=r"DiagonalNormal \|\| MixtureSameFamily.*estimate_kl\(p, q"):
        kl_divergence(DiagonalNormal(torch.zeros(4, 2), torch.zeros(4, 2)), mixture)
    low_rank = LowRankMultivariateNormal(torch.zeros(2), torch.ones(2, 1), torch.ones(2))
    with pytest.raises(NotImplementedError, match="Independent"):
        kl_divergence(Independent(Laplace(torch.zeros(2), 1.0), 1), low_rank)


def test_bad_arguments():
    normal = Normal(torch.zeros(4), 1.0)
    with pytest.raises(TypeError, match="q is a Tensor"):
        kl_divergence(normal, torch.zeros(4))
    with pytest.raises(ValueError, match=r"p.batch_shape \(4,\), q.batch_shape \(3,\)"):
        kl_divergence(normal, Normal(torch.zeros(3), 1.0))
    with pytest.raises(ValueError, match=r"event shape \(\) and q \(4,\)"):
        kl_divergence(normal, Independent(normal, 1))


@pytest.mark.parametrize("distance", [1.0, 1e-3, 1e-6, 1e-8])
@pytest.mark.parametrize("scale", [1.3, 1e-20])
def test_normals_given_by_scales_in_float64(distance, scale):
    p, q = (Normal(torch.tensor(0.0).double(), torch.tensor(s).double()) for s in (scale * (1 + distance), scale))
    with mpmath.workdps(60):
        ratio = (mpmath.mpf(p.scale.item()) / mpmath.mpf(q.scale.item())) ** 2
        truth = (ratio - 1 - mpmath.log(ratio)) / 2
    assert abs(kl_divergence(p, q).item() - truth) <= 1e-12 * truth


def test_gradients_of_normals_given_by_scales():
    parameters = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.3, 1e-20, 0.1, 1.2)]
    near = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.3, 1.1, 0.1, 1.2)]
    assert torch.autograd.gradcheck(lambda a, b, c, d: kl_divergence(Normal(a, b), Normal(c, d)), near)
    gradients = torch.autograd.grad(kl_divergence(Normal(*parameters[:2]), Normal(*parameters[2:])), parameters)
    assert gradients[1].item() == pytest.approx(-1e20, rel=1e-12)
    assert all(gradient.isfinite() for gradient in gradients)


def test_parameters_inside_transforms_are_never_trusted_to_be_the_same():
    p, q = (Kumaraswamy(torch.tensor(a), torch.tensor(b), validate_args=False) for a, b in ((1.0, 2.0), (3.0, 0.5)))
    with pytest.raises(NotImplementedError, match=r"unequal transforms.*kl_quadrature"):
        kl_divergence(p, q)


def test_a_log_variance_has_every_closed_form_that_a_scale_has():
    mean, log_var = torch.randn(2, 4, 3, dtype=torch.float64)
    p, normal = DiagonalNormal(mean, log_var, event_dim=0), Normal(mean, torch.exp(0.5 * log_var))
    for q in (Laplace(0.3, 2.0), Gumbel(0.3, 2.0)):
        torch.testing.assert_close(kl_divergence(p, q), kl_divergence(normal, q))
    for q in (Laplace(0.3, 2.0), Gumbel(0.3, 2.0), Uniform(0.0, 2.0)):
        torch.testing.assert_close(kl_divergence(q, p), kl_divergence(q, normal))
    with pytest.raises(NotImplementedError, match=r"DiagonalNormal \|\| StudentT.*kl_quadrature"):
        kl_divergence(p, StudentT(5.0))
    joint = kl_divergence(DiagonalNormal(mean, log_var), Independent(Laplace(torch.zeros(3).double(), 1.0), 1))
    torch.testing.assert_close(joint, kl_divergence(normal, Laplace(0.0, 1.0)).sum(-1))
    assert kl_divergence(DiagonalNormal(mean.half(), log_var.half(), 0), Laplace(0.0, 1.0)).dtype == torch.float32
