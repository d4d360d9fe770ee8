import pytest
import scipy.stats
import torch
from torch.nn import functional

from kldiv import CategoricalNLL, MultinomialNLL


class TestCategoricalNLL:
    def test_is_cross_entropy_in_either_layout(self):
        logits, target = torch.randn(4, 5, 3, 2), torch.randint(5, (4, 3, 2))
        expected = functional.cross_entropy(logits, target, reduction="none").sum((1, 2))
        torch.testing.assert_close(CategoricalNLL(dim=1, reduction="none")(logits, target), expected)
        torch.testing.assert_close(CategoricalNLL(reduction="none")(logits.movedim(1, -1), target), expected)

    def test_is_normalised(self):
        logits = torch.randn(50, 7)
        mass = sum(torch.exp(-CategoricalNLL(reduction="none")(logits, torch.full((50,), k))) for k in range(7))
        torch.testing.assert_close(mass, torch.ones(50))

    def test_a_padded_sequence(self):
        logits = torch.randn(2, 4, 5, requires_grad=True)
        target = torch.randint(5, (2, 4))
        mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
        broken = target.masked_fill(mask == 0, -100)  # as loaders pad
        full = functional.cross_entropy(logits.movedim(-1, 1), target, reduction="none")
        value = CategoricalNLL(reduction="none")(logits, broken, mask=mask)
        torch.testing.assert_close(value, (full * mask).sum(1))
        value.sum().backward()
        assert (logits.grad[0, 2:] == 0).all()

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match=r"output \(4, 5, 3\) without its dimension -1.*target \(4, 3\)"):
            CategoricalNLL()(torch.zeros(4, 5, 3), torch.zeros(4, 3, dtype=torch.long))
        with pytest.raises(ValueError, match=r"target\.long\(\)"):
            CategoricalNLL()(torch.zeros(4, 3), torch.zeros(4))
        with pytest.raises(ValueError, match="dim=0"):
            CategoricalNLL(0)
        with pytest.raises(ValueError, match="no dimension dim=2"):
            CategoricalNLL(2)(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))


class TestSoftLabels:
    def test_are_a_cross_entropy_in_either_layout(self):
        logits, target = torch.randn(4, 5, 3), torch.rand(4, 5, 3).softmax(1)
        expected = functional.cross_entropy(logits, target, reduction="none").sum(1)
        torch.testing.assert_close(CategoricalNLL(1, reduction="none")(logits, target), expected)
        moved = logits.movedim(1, -1), target.movedim(1, -1)
        torch.testing.assert_close(CategoricalNLL(reduction="none")(*moved), expected)

    def test_of_one_category_are_its_number(self):
        logits, target = torch.randn(4, 3, 5), torch.randint(5, (4, 3))
        one_hot = functional.one_hot(target, 5).float()
        torch.testing.assert_close(CategoricalNLL()(logits, one_hot), CategoricalNLL()(logits, target))

    def test_an_impossible_category_without_a_share_counts_nothing(self):
        logits = torch.tensor([[0.0, -torch.inf, 0.0]], requires_grad=True)
        value = CategoricalNLL()(logits, torch.tensor([[0.5, 0.0, 0.5]]))
        value.backward()
        assert value.item() == pytest.approx(0.6931472)
        assert logits.grad.tolist() == [[0.0, 0.0, 0.0]]

    def test_masks_have_no_dimension_of_categories(self):
        logits, target = torch.randn(2, 4, 5), torch.rand(2, 4, 5).softmax(-1)
        mask = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 1]])
        each = -(target * logits.log_softmax(-1)).sum(-1)
        broken = target.masked_fill(mask[..., None] == 0, torch.nan)
        value = CategoricalNLL(reduction="none")(logits, broken, mask=mask)
        torch.testing.assert_close(value, (each * mask).sum(1))
        assert torch.equal(CategoricalNLL(reduction="none")(logits, broken, mask=mask[..., None]), value)

    def test_probabilities_that_do_not_sum_to_one(self):
        with pytest.raises(ValueError, match=r"off by up to 0\.5.*x\.sum\(-1"):
            CategoricalNLL()(torch.zeros(2, 3), torch.full((2, 3), 0.5))


class TestMultinomialNLL:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
    def test_against_scipy(self, dtype, tolerance):
        generator = torch.Generator().manual_seed(0)
        for scale in (0.1, 1.0, 10.0):
            logits = scale * torch.randn(20, 6, dtype=dtype, generator=generator)
            target = torch.randint(9, (20, 6), generator=generator).to(dtype)
            probs, counts = logits.double().softmax(-1).numpy(), target.double().numpy()
            probs /= probs.sum(-1, keepdims=True)  # older SciPy puts what is missing to 1 on the last
            truth = [-scipy.stats.multinomial.logpmf(t, t.sum(), p) for t, p in zip(counts, probs, strict=True)]
            value = MultinomialNLL("none")(logits, target)
            assert value.dtype == dtype
            torch.testing.assert_close(value.double(), torch.tensor(truth).double(), rtol=tolerance, atol=tolerance)

    def test_is_normalised(self):
        logits = torch.randn(3, dtype=torch.float64)
        counts = [(a, b, 5 - a - b) for a in range(6) for b in range(6 - a)]
        nats = MultinomialNLL("none")(logits.expand(len(counts), 3), torch.tensor(counts).double())
        assert torch.exp(-nats).sum().item() == pytest.approx(1.0)

    def test_gradient_is_expected_less_given_counts(self):
        logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
        target = torch.randint(9, (2, 3, 4)).double()
        (gradient,) = torch.autograd.grad(MultinomialNLL("sum")(logits, target), logits)
        torch.testing.assert_close(gradient, target.sum(-1, keepdim=True) * logits.softmax(-1) - target)

    def test_masks_are_of_whole_counts(self):
        logits, target = torch.randn(2, 3, 4), torch.randint(9, (2, 3, 4)).float()
        each = torch.stack([MultinomialNLL("none")(logits[:, k], target[:, k]) for k in range(3)], 1)
        mask = torch.tensor([[1, 0, 1], [0, 1, 1]])
        broken = target.masked_fill(mask[..., None] == 0, torch.nan)
        value = MultinomialNLL("none")(logits, broken, mask=mask[..., None])
        torch.testing.assert_close(value, (each * mask).sum(1))

    def test_a_document_of_counts_and_bad_arguments(self):
        generator = torch.Generator().manual_seed(0)
        drawn = MultinomialNLL().sample(torch.zeros(5, 3), total_count=30, generator=generator)
        assert drawn.sum(-1).tolist() == [30.0] * 5
        torch.testing.assert_close(MultinomialNLL().mean(torch.zeros(5, 3), total_count=30), torch.full((5, 3), 10.0))
        with pytest.raises(ValueError, match=r"\(N, K\)"):
            MultinomialNLL()(torch.zeros(3), torch.zeros(3))
