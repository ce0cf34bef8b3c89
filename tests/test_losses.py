import math

import pytest
import torch
from torch.nn import functional as F

from fedstill.losses import discrepancy, model_contrast, prototype_distance, supervised_contrast
from fedstill.seeds import Seed

SEED = Seed.root(0).at("losses")


def draw(*shape, name="x"):
    return torch.randn(*shape, generator=SEED.at(name).torch(), dtype=torch.float64)


def slow_contrast(features, labels, temperature):
    """Khosla et al., Eq. 2, term by term."""
    z = [row / math.sqrt(sum(value**2 for value in row)) for row in features]
    n, terms = len(z), []
    for i in range(n):
        mates = [p for p in range(n) if p != i and labels[p] == labels[i]]
        if not mates:
            continue
        below = sum(math.exp(float(z[i] @ z[a]) / temperature) for a in range(n) if a != i)
        logs = [math.log(math.exp(float(z[i] @ z[p]) / temperature) / below) for p in mates]
        terms.append(-sum(logs) / len(mates))
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1, 0, 3], [0, 0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5, 5]])
@pytest.mark.parametrize("temperature", [0.07, 0.5, 2.0])
def test_supervised_contrast_is_its_formula(labels, temperature):
    features = draw(7, 4)
    loss = supervised_contrast(features, torch.tensor(labels), temperature=temperature)
    assert loss.item() == pytest.approx(slow_contrast(features, labels, temperature), rel=1e-10)


def test_supervised_contrast_has_the_gradient_of_its_formula():
    features, labels = draw(6, 3).requires_grad_(), torch.tensor([0, 1, 0, 2, 1, 0])
    assert torch.autograd.gradcheck(lambda rows: supervised_contrast(rows, labels, temperature=0.3), features)


@pytest.mark.parametrize("labels", [[0], [0, 1, 2]])
def test_where_nothing_is_alike_there_is_nothing_to_pull(labels):
    features = draw(len(labels), 3).requires_grad_()
    loss = supervised_contrast(features, torch.tensor(labels), temperature=0.07)
    loss.backward()
    assert loss.item() == 0
    assert not features.grad.any()


def test_a_row_that_is_alone_is_still_a_negative():
    features, labels = draw(3, 4), torch.tensor([0, 0, 1])
    assert supervised_contrast(features, labels, temperature=0.5) > supervised_contrast(
        features[:2], labels[:2], temperature=0.5
    )


def test_model_contrast_is_its_formula():
    features, received, previous = (draw(5, 3, name=name) for name in ("z", "glob", "prev"))
    near, far = (F.cosine_similarity(features, other) / 0.5 for other in (received, previous))
    expected = -(near.exp() / (near.exp() + far.exp())).log().mean()
    torch.testing.assert_close(model_contrast(features, received, previous, temperature=0.5), expected)
    assert torch.autograd.gradcheck(
        lambda rows: model_contrast(rows, received, previous, temperature=0.5), features.requires_grad_()
    )


def test_model_contrast_pulls_nowhere_where_both_networks_agree():
    features, other = draw(5, 3).requires_grad_(), draw(5, 3, name="other")
    loss = model_contrast(features, other, other, temperature=0.5)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert features.grad.abs().max() < 1e-15


def test_prototypes_that_are_not_known_pull_nothing():
    features, labels = draw(4, 3).requires_grad_(), torch.tensor([0, 1, 1, 2])
    prototypes, known = draw(3, 3, name="prototypes"), torch.tensor([True, False, True])
    loss = prototype_distance(features, labels, prototypes, known)
    expected = (F.mse_loss(features[0], prototypes[0]) + F.mse_loss(features[3], prototypes[2])) / 4
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert features.grad[1:3].abs().max() == 0
    assert features.grad[0].abs().min() > 0


@pytest.mark.parametrize("bandwidth", [None, 0.7])
def test_discrepancy_is_its_formula(bandwidth):
    x, y = draw(4, 3), draw(6, 3, name="y") + 1
    rows = torch.cat([x, y])
    pairs = [float((a - b).norm()) for i, a in enumerate(rows) for b in rows[i + 1 :]]
    sigma = bandwidth or sorted(pairs)[(len(pairs) - 1) // 2]

    def mean(left, right):
        return sum(math.exp(-(float((a - b).norm()) ** 2) / (2 * sigma**2)) for a in left for b in right) / (
            len(left) * len(right)
        )

    expected = mean(x, x) + mean(y, y) - 2 * mean(x, y)
    assert discrepancy(x, y, bandwidth=bandwidth).item() == pytest.approx(expected, rel=1e-10)


def test_discrepancy_has_the_gradient_of_its_formula():
    x, y = draw(4, 3).requires_grad_(), draw(5, 3, name="y")
    assert torch.autograd.gradcheck(lambda rows: discrepancy(rows, y, bandwidth=1.3), x)


def test_discrepancy_of_equal_samples_is_zero_and_finite():
    for x in (draw(4, 3), torch.zeros(4, 3), torch.zeros(1, 3)):
        x = x.requires_grad_()
        loss = discrepancy(x, x.detach().clone())
        loss.backward()
        assert loss.item() == pytest.approx(0, abs=1e-12)
        assert torch.isfinite(x.grad).all()
