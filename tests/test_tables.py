import math
import random

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import kldiv
from kldiv.tables import cross_entropy, entropy, jeffreys, jensen_shannon, relative_entropy
from tests.marks import slow, sweep

PAIRS = [relative_entropy, cross_entropy, jeffreys, jensen_shannon]
ALL = [*PAIRS, entropy]
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def call(function, p, q, *args, **kwargs):
    return function(p, *args, **kwargs) if function is entropy else function(p, q, *args, **kwargs)


def true_relative_entropy(p, q):
    return sum((a * mpmath.log(a / b) if b else mpmath.inf for a, b in zip(p, q, strict=True) if a > 0), mpmath.mpf(0))


def truth(function, p, q):
    """Of flat tables, as they are stored."""
    with mpmath.workdps(50):
        p, q = ([mpmath.mpf(x) for x in table.tolist()] for table in (p, q))
        p, q = ([x / total for x in table] for table, total in ((p, sum(p)), (q, sum(q))))
        mixture = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        bits = -sum((a * mpmath.log(a) for a in p if a > 0), mpmath.mpf(0))
        return {
            relative_entropy: lambda: true_relative_entropy(p, q),
            entropy: lambda: bits,
            cross_entropy: lambda: bits + true_relative_entropy(p, q),
            jeffreys: lambda: true_relative_entropy(p, q) + true_relative_entropy(q, p),
            jensen_shannon: lambda: (true_relative_entropy(p, mixture) + true_relative_entropy(q, mixture)) / 2,
        }[function]()


def nearby(generator, size, distance, dtype, spread=2.0):
    """A random table, and one whose entries differ from it by the relative distance at most."""
    p = (spread * torch.randn(size, dtype=torch.float64, generator=generator)).softmax(-1)
    q = p * (1 + distance * (2 * torch.rand(size, dtype=torch.float64, generator=generator) - 1))
    return p.to(dtype), (q / q.sum(-1, keepdim=True)).to(dtype)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return nearby(generator, shape, 1.0, torch.float64, spread=1.0)


def assert_right(function, p, q, tolerance, **kwargs):
    value, true = call(function, p, q, **kwargs).item(), truth(function, p, q)
    assert value >= 0
    assert abs(value - true) <= tolerance * true, (function.__name__, value, float(true))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", sweep([1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-7], [1.0, 1e-3, 1e-7]))
def test_against_fifty_digits_however_close_the_two_are(dtype, distance):
    generator = torch.Generator().manual_seed(0)
    for trial in range(40):
        p, q = nearby(generator, [2, 3, 10, 200][trial % 4], distance, dtype, spread=[0.5, 4.0][trial % 2])
        if trial % 5 == 0:
            q = q * (1 + 8e-7)  # a table that misses one by more than two close tables differ
        for function in ALL:
            assert_right(function, p, q, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_fifty_digits_over_many_magnitudes(dtype):
    choose = random.Random(0)
    for _ in range(100):
        p, q = (torch.tensor([10 ** choose.uniform(-30, 0) for _ in range(6)], dtype=torch.float64) for _ in range(2))
        p, q = (p / p.sum()).to(dtype), (q / q.sum()).to(dtype)
        for function in ALL:
            assert_right(function, p, q, TOLERANCE[dtype])


@pytest.mark.parametrize("size", sweep([2_000, 20_000], [2_000]))
def test_a_large_table(size):
    p, q = nearby(torch.Generator().manual_seed(0), size, 1e-5, torch.float64)
    assert_right(relative_entropy, p, q, 1e-12)
    assert_right(jensen_shannon, p, q, 1e-12)


def test_the_literal_sum_is_negative_where_these_are_not():
    p, q = nearby(torch.Generator().manual_seed(0), (1000, 5), 1e-5, torch.float32)
    assert ((p * (p / q).log()).sum(-1) < 0).float().mean() > 0.3
    for function in (relative_entropy, jeffreys, jensen_shannon):
        assert (function(p, q) > 0).all()


@pytest.mark.parametrize("rest", [1e-3, 1e-12, 1e-20, 1e-30])
def test_the_entropy_of_near_certainty(rest):
    p = torch.tensor([1 - rest, 0.25 * rest, 0.75 * rest], dtype=torch.float64)
    assert_right(entropy, p, p, 1e-12)
    assert_right(cross_entropy, p, p.flip(0), 1e-12)
    assert_right(cross_entropy, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), p, 1e-12)


def table(dtype=torch.float32, size=6):
    weight = st.one_of(st.just(0.0), st.floats(1e-6, 1.0))
    return (
        st.lists(weight, min_size=size, max_size=size)
        .filter(lambda weights: sum(weights) > 0)
        .map(lambda weights: (torch.tensor(weights, dtype=torch.float64) / sum(weights)).to(dtype))
    )


@settings(deadline=None)
@given(p=table(), q=table(), near=st.floats(-7, -1), signs=st.lists(st.floats(-1, 1), min_size=6, max_size=6))
def test_never_negative_and_never_nan(p, q, near, signs):
    close = p * (1 + 10**near * torch.tensor(signs))
    for other in (q, close / close.sum()):
        for function in ALL:
            value = call(function, p, other)
            assert value >= 0
    assert jensen_shannon(p, q) <= torch.tensor(math.log(2))
    assert jensen_shannon(p, q, base=2) <= 1
    lost = ((p > 0) & (q == 0)).any()
    assert relative_entropy(p, q).isinf() == cross_entropy(p, q).isinf() == lost
    assert jeffreys(p, q).isinf() == ((p > 0) != (q > 0)).any()


@settings(deadline=None)
@given(p=table(), q=table())
def test_zero_exactly_where_the_two_are_the_same(p, q):
    for function in (relative_entropy, jeffreys, jensen_shannon):
        assert function(p, p) == 0
        if (p - q).abs().max() > 1e-6:
            assert function(p, q) > 0


@settings(deadline=None)
@given(p=table(), q=table(), order=st.permutations(range(6)))
def test_the_order_of_outcomes_does_not_matter(p, q, order):
    for function in ALL:
        torch.testing.assert_close(call(function, p, q), call(function, p[order], q[order]))


@settings(deadline=None)
@given(p=table(torch.float64), q=table(torch.float64), r=table(torch.float64))
def test_symmetric_functions_and_the_triangle(p, q, r):
    for function in (jeffreys, jensen_shannon):
        torch.testing.assert_close(function(p, q), function(q, p), rtol=1e-14, atol=0)
    sides = [jensen_shannon(*pair).sqrt() for pair in ((p, q), (q, r), (p, r))]
    assert sides[2] <= sides[0] + sides[1] + 1e-12


@settings(deadline=None)
@given(p=table(torch.float64), q=table(torch.float64))
def test_merging_outcomes_loses_information(p, q):
    merged_p, merged_q = (t.unflatten(0, (3, 2)).sum(-1) for t in (p, q))
    for function in (relative_entropy, jeffreys, jensen_shannon, entropy):
        assert call(function, merged_p, merged_q) <= call(function, p, q) * (1 + 1e-12) + 1e-30


@settings(deadline=None)
@given(p=table(torch.float64), q=table(torch.float64))
def test_the_identities_between_them(p, q):
    kl, bits = relative_entropy(p, q), entropy(p)
    torch.testing.assert_close(cross_entropy(p, q), bits + kl, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(jeffreys(p, q), kl + relative_entropy(q, p), rtol=1e-13, atol=0)
    mixture = (p + q) / 2
    mean = (relative_entropy(p, mixture) + relative_entropy(q, mixture)) / 2
    torch.testing.assert_close(jensen_shannon(p, q), mean, rtol=1e-12, atol=1e-15)
    uniform = torch.full_like(p, 1 / 6)
    torch.testing.assert_close(math.log(6) - bits, relative_entropy(p, uniform), rtol=1e-12, atol=1e-14)


def test_joint_tables_of_independent_variables_add_up():
    p, q = draw(3, 4)
    r, s = draw(3, 5, seed=1)
    joint_p, joint_q = p[:, :, None] * r[:, None], q[:, :, None] * s[:, None]
    for function in (relative_entropy, jeffreys, cross_entropy, entropy):
        whole = call(function, joint_p, joint_q, dim=(1, 2))
        assert whole.shape == (3,)
        torch.testing.assert_close(whole, call(function, p, q) + call(function, r, s))
    torch.testing.assert_close(
        relative_entropy(joint_p, joint_q, (-1, 1)), relative_entropy(joint_p.flatten(1), joint_q.flatten(1))
    )


def test_the_chain_rule_of_a_joint_table():
    p, q = draw(20)
    p, q = p.view(4, 5), q.view(4, 5)
    marginal_p, marginal_q = p.sum(1), q.sum(1)
    rows = relative_entropy(p / marginal_p[:, None], q / marginal_q[:, None])
    torch.testing.assert_close(
        relative_entropy(p, q, (0, 1)), relative_entropy(marginal_p, marginal_q) + (marginal_p * rows).sum()
    )


@pytest.mark.parametrize("function", ALL)
def test_a_dimension_anywhere(function):
    p, q = draw(2, 3, 4)
    expected = call(function, p, q)
    assert expected.shape == (2, 3)
    torch.testing.assert_close(call(function, p.movedim(-1, 0), q.movedim(-1, 0), 0), expected)
    torch.testing.assert_close(call(function, p.movedim(-1, 1), q.movedim(-1, 1), dim=-2), expected)


@pytest.mark.parametrize("function", PAIRS)
def test_shapes_broadcast(function):
    p, q = draw(2, 3, 4)
    value = function(p[:, :1], q[0])
    assert value.shape == (2, 3)
    torch.testing.assert_close(value, function(p[:, :1].expand(2, 3, 4), q[:1].expand(2, 3, 4)), rtol=0, atol=0)
    # one entry for all four, which broadcast sums to one
    uniform = torch.tensor([0.25], dtype=torch.float64)
    torch.testing.assert_close(function(p, uniform), function(p, uniform.expand(4)), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"q sums to 4"):
        function(p, 4 * uniform)


@pytest.mark.parametrize("function", PAIRS)
def test_infinite_and_finite_values_broadcast_alike(function):
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    value = function(p, q)
    assert value.shape == (2,)
    assert value[0] == function(p, q[0])
    assert value[1] == function(p, q[1])


@pytest.mark.parametrize("function", PAIRS)
def test_shapes_that_do_not_broadcast_raise_with_both(function):
    p, q = draw(2, 3, 4)
    with pytest.raises(ValueError, match=r"p \(2, 3, 4\), q \(2, 4\)"):
        function(p, q[:, 0])


@pytest.mark.parametrize("function", ALL)
def test_an_empty_batch_has_no_values_and_an_empty_table_raises(function):
    empty = torch.zeros(0, 4)
    assert call(function, empty, empty).shape == (0,)
    for table_without_entries, dim in ((torch.zeros(3, 0), -1), (torch.ones(3), ()), (torch.zeros(3, 0), (0, 1))):
        with pytest.raises(ValueError, match="without entries"):
            call(function, table_without_entries, table_without_entries, dim)


def test_dimensions_that_do_not_exist_or_come_twice_raise():
    p = torch.full((2, 2), 0.5)
    for dim in (2, -3, (0, 2)):
        with pytest.raises(ValueError, match="no such dimension"):
            entropy(p, dim)
    with pytest.raises(ValueError, match="no such dimension"):
        entropy(torch.tensor(1.0))
    with pytest.raises(ValueError, match="twice"):
        entropy(p, (1, -1))


@pytest.mark.parametrize("function", ALL)
def test_bases(function):
    p, q = draw(7)
    nats = call(function, p, q)
    for base in (2, 10.0, math.e, 1.5):
        torch.testing.assert_close(call(function, p, q, base=base) * math.log(base), nats, rtol=1e-14, atol=0)
    for base in (1, 0.5, 0, -2, math.inf, math.nan):
        with pytest.raises(ValueError, match="base"):
            call(function, p, q, base=base)


def test_jensen_shannon_is_at_most_ln_2():
    p, q = draw(1000, 7)
    nothing = torch.zeros_like(p)
    p, q = torch.cat([p, nothing], -1), torch.cat([nothing, q], -1)
    value = jensen_shannon(p, q)
    assert (value <= math.log(2)).all()
    torch.testing.assert_close(value, torch.full_like(value, math.log(2)), rtol=1e-15, atol=0)


def test_values_at_the_edge():
    certain, other, fair = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5])
    assert relative_entropy(certain, fair, base=2) == 1
    assert relative_entropy(fair, certain) == math.inf
    assert relative_entropy(certain, other) == jeffreys(certain, other) == cross_entropy(certain, other) == math.inf
    assert jensen_shannon(certain, other, base=2) == 1
    assert jensen_shannon(certain, other) == torch.tensor(math.log(2))
    assert entropy(certain) == cross_entropy(certain, certain) == 0
    assert not entropy(certain).signbit()
    assert not relative_entropy(certain, certain).signbit()
    assert jeffreys(certain, fair) == math.inf
    tiny = torch.tensor([1.0, 1e-45])
    assert relative_entropy(fair, tiny).item() == pytest.approx(float(truth(relative_entropy, fair, tiny)), rel=1e-6)


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(function, dtype):
    p, q = (t.to(dtype) for t in draw(4, 9))
    value = call(function, p, q)
    assert value.dtype == torch.float32
    for row in range(4):
        assert_right(function, p[row], q[row], 1e-6)
    assert call(function, p.double(), q, validate=False).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(call(function, p, q), value)


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2, 1000, 50_000])
def test_the_tolerance_takes_what_a_softmax_gives(dtype, size):
    logits = torch.randn(3, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = logits.to(dtype).softmax(-1)
    torch.testing.assert_close(entropy(p), entropy(p.double() / p.double().sum(-1, keepdim=True)).to(entropy(p).dtype))


def test_the_tolerance_takes_a_uniform_table_of_subnormal_numbers():
    size = 550_000  # an entry is 30.5 times the smallest number of float16
    uniform = torch.full((size,), 1 / size, dtype=torch.float16)
    assert abs(uniform.double().sum() - 1) > 0.01
    assert entropy(uniform).item() == pytest.approx(math.log(size), rel=1e-6)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), list(zip(DTYPES, [1.41e-6, 1.89e-6, 3.9e-3, 3.1e-2], strict=True)), ids=str
)
def test_the_tolerance_takes_no_more(dtype, tolerance):
    for sign in (-1, 1):
        entropy(torch.tensor([0.5, 0.5 + sign * 0.7 * tolerance], dtype=torch.float64).to(dtype))
        with pytest.raises(ValueError, match="p sums to"):
            entropy(torch.tensor([0.5, 0.5 + sign * 1.5 * tolerance], dtype=torch.float64).to(dtype))


def test_the_tolerance_grows_with_the_table():
    for size, raises in ((4, True), (100, False)):
        off = torch.full((size,), (1 + 5e-6) / size, dtype=torch.float64)
        if raises:
            with pytest.raises(ValueError, match=r"p sums to 1\.000005,"):
                entropy(off)
        else:
            assert entropy(off) == pytest.approx(math.log(size), rel=1e-14)  # of the table that it is read as


@pytest.mark.parametrize("function", ALL)
def test_tables_that_are_none_raise_with_what_is_wrong(function):
    p, q = draw(3, 4)
    for wrong, message in (
        (
            p * torch.tensor([[1.0], [1.0], [0.9]], dtype=torch.float64),
            r"p sums to 0\.9,.*p / p\.sum\(1, keepdim=True\)",
        ),
        (torch.where(p == p.max(), -0.25, p), r"p holds -0\.25,.*p\.exp\(\).*p\.softmax\(1\)"),
        (torch.tensor([1.25, -0.25, 0.0, 0.0]), r"p holds -0\.25,"),
        (torch.where(p == p.max(), math.nan, p), "p holds nan"),
        (torch.where(p == p.max(), math.inf, p), "p sums to inf"),
        (torch.zeros(3, 4), "p sums to 0,"),
    ):
        with pytest.raises(ValueError, match=message):
            call(function, wrong, q)
        call(function, wrong, q, validate=False)
        if function is not entropy:
            with pytest.raises(ValueError, match=r"^q (sums to|holds)"):
                function(p, wrong)


@pytest.mark.parametrize("function", ALL)
def test_unchecked_tables_are_read_as_their_shares(function):
    p, q = draw(3, 4)
    value = call(function, 7 * p, 1e-3 * q, validate=False)
    torch.testing.assert_close(value, call(function, p, q), rtol=1e-13, atol=0)
    counts = torch.tensor([3.0, 5.0, 0.0])
    assert jeffreys(counts, 10 * counts, validate=False) == 0


@pytest.mark.parametrize("function", ALL)
def test_tables_of_another_type_raise_with_what_to_write(function):
    counts = torch.tensor([1, 2, 3])
    for wrong in (counts, counts > 1, counts * 1j):
        with pytest.raises(TypeError, match=r"p is a table of .*p / p\.sum\(-1, keepdim=True\)"):
            call(function, wrong, counts)
    with pytest.raises(TypeError, match=r"p is a list, .*torch\.tensor\(p\)"):
        call(function, [0.5, 0.5], counts)
    assert call(function, counts / counts.sum(-1, keepdim=True), torch.full((3,), 1 / 3)) >= 0


class Synchronisations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize(("validate", "count"), [(True, 1), (False, 0)])
def test_synchronises_once_for_both_tables_or_never(function, validate, count):
    p, q = draw(3, 4)
    with Synchronisations() as synchronisations:
        call(function, p, q, validate=validate)
    assert synchronisations.count == count


@pytest.mark.parametrize("function", ALL)
def test_no_value_is_needed_without_the_check(function):
    p = torch.empty(3, 4, device="meta")
    assert call(function, p, p, validate=False).shape == (3,)


@pytest.mark.parametrize("function", ALL)
def test_gradcheck_first_and_second_order(function):
    tables = [t.requires_grad_() for t in draw(2, 4)][: 1 if function is entropy else 2]
    assert torch.autograd.gradcheck(lambda *t: function(*t, validate=False), tables, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda *t: function(*t, base=2, dim=(0, 1), validate=False), tables)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-9)])
@pytest.mark.parametrize("distance", [1.0, 1e-2, 1e-3, 1e-5])
def test_gradients_against_fifty_digits(dtype, tolerance, distance):
    p, q = (t.requires_grad_() for t in nearby(torch.Generator().manual_seed(0), 6, distance, dtype))
    gradients = torch.autograd.grad(relative_entropy(p, q), (p, q))
    with mpmath.workdps(50):
        kl = truth(relative_entropy, p, q)
        sums = [sum(map(mpmath.mpf, t.tolist())) for t in (p, q)]
        ratios = [
            mpmath.mpf(a) / sums[0] / (mpmath.mpf(b) / sums[1]) for a, b in zip(p.tolist(), q.tolist(), strict=True)
        ]
        true = [[(mpmath.log(r) - kl) / sums[0] for r in ratios], [(1 - r) / sums[1] for r in ratios]]
    for gradient, of_truth in zip(gradients, true, strict=True):
        scale = max(map(abs, of_truth))
        for value, exact in zip(gradient.tolist(), of_truth, strict=True):
            assert abs(value - exact) <= tolerance * scale


@pytest.mark.parametrize("function", ALL)
def test_a_zero_in_both_tables_leaves_the_other_gradients_alone(function):
    p, q = (t.requires_grad_() for t in draw(4))
    with_zero = [torch.nn.functional.pad(t.detach(), (0, 1)).requires_grad_() for t in (p, q)]
    for order in (1, 2):
        values = [call(function, *tables) for tables in ((p, q), with_zero)]
        if order == 2:
            values = [
                sum(g[:4].square().sum() for g in torch.autograd.grad(v, t, create_graph=True, materialize_grads=True))
                for v, t in zip(values, ((p, q), with_zero), strict=True)
            ]
        torch.testing.assert_close(values[1], values[0])
        expected, gradients = (
            torch.autograd.grad(v, t, materialize_grads=True) for v, t in zip(values, ((p, q), with_zero), strict=True)
        )
        for gradient, of_others in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient[:4], of_others)
            assert gradient.isfinite().all()


@pytest.mark.parametrize("function", [relative_entropy, cross_entropy, jensen_shannon, entropy])
def test_gradients_are_finite_where_p_alone_is_zero(function):
    p, q = (torch.tensor(t, requires_grad=True) for t in ([0.25, 0.75, 0.0], [0.5, 0.25, 0.25]))
    gradients = torch.autograd.grad(call(function, p, q), (p, q), materialize_grads=True)
    assert all(gradient.isfinite().all() for gradient in gradients)
    if function is relative_entropy:  # (1 - P/Q) / sum(q)
        torch.testing.assert_close(gradients[1], torch.tensor([0.5, -2.0, 1.0]))
    if function is cross_entropy:  # linear in P: -ln Q - H(P, Q)
        torch.testing.assert_close(gradients[0], -q.detach().log() - function(p, q).detach())


@pytest.mark.parametrize("function", ALL)
def test_masked_logits_have_the_gradient_of_the_others(function):
    logits, q = draw(4)
    masked = torch.cat([logits, torch.tensor([-math.inf])]).requires_grad_()
    logits.requires_grad_()
    padded = torch.cat([q, torch.zeros(1)])
    for other in (padded, 0.5 * padded + 0.1):  # the outcome is impossible under P, with and without Q's consent
        if function is jeffreys and other[-1] > 0:
            continue  # infinite
        (gradient,) = torch.autograd.grad(call(function, masked.softmax(-1), other), masked)
        assert gradient[-1] == 0
        assert gradient.isfinite().all()
        if other is padded or function is entropy:
            (expected,) = torch.autograd.grad(call(function, logits.softmax(-1), q), logits)
            torch.testing.assert_close(gradient[:-1], expected)


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("pair", [([0.25, 0.25, 0.5], [0.5, 0.5, 0.0]), ([1.0, 0.0], [0.0, 1.0])])
def test_gradients_are_never_nan(function, pair):
    p, q = (torch.tensor(t, requires_grad=True) for t in pair)
    gradients = torch.autograd.grad(call(function, p, q), (p, q), materialize_grads=True)
    assert not any(gradient.isnan().any() for gradient in gradients)
    if function in (relative_entropy, cross_entropy, jeffreys):
        lost = (q == 0) & (p > 0)
        assert (gradients[0][lost] == math.inf).all()
        assert (gradients[1][lost] == -math.inf).all()


@pytest.mark.parametrize("function", ALL)
def test_function_transforms(function):
    p, q = draw(3, 4)
    tables = (p,) if function is entropy else (p, q)

    def unchecked(*t):
        return function(*t, validate=False)

    torch.testing.assert_close(torch.func.vmap(unchecked)(*tables), function(*tables))
    jacobian = torch.func.jacrev(function)(*tables)
    tangent = torch.ones_like(p)
    _, along = torch.func.jvp(unchecked, tables, (tangent, *tables[1:]))
    _, back = torch.func.vjp(unchecked, *tables)
    gradients = back(torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(jacobian.sum(0), gradients[0])
    expected = sum((g * t).sum(-1) for g, t in zip(gradients, (tangent, *tables[1:]), strict=True))
    torch.testing.assert_close(along, expected, rtol=1e-10, atol=1e-12)
    hessian = torch.func.hessian(function)(*(t[0] for t in tables))
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(function, tuple(t[0] for t in tables))[0][0])


# code is generated for two only, which have the primitives of all: it takes long
@pytest.mark.parametrize(
    ("function", "backend"),
    [
        (relative_entropy, "aot_eager"),
        (entropy, "aot_eager"),
        *(pytest.param(f, "aot_eager", marks=slow) for f in (cross_entropy, jeffreys, jensen_shannon)),
        *(pytest.param(f, "inductor", marks=slow) for f in (relative_entropy, entropy)),
    ],
)
def test_compiled_equals_eager(function, backend):
    pytest.importorskip("torch._inductor")
    torch.compiler.reset()
    generator = torch.Generator().manual_seed(0)
    tables = [t.requires_grad_() for t in nearby(generator, (8, 5), 1e-3, torch.float32)]
    tables = tables[: 1 if function is entropy else 2]
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    values = compiled(*tables), function(*tables)
    torch.testing.assert_close(*values, rtol=5e-7, atol=0)
    gradients = (torch.autograd.grad(value.sum(), tables) for value in values)
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)


def test_is_part_of_the_package():
    assert kldiv.tables.relative_entropy is relative_entropy
    assert "tables" in kldiv.__all__
