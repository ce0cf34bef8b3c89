"""Class histograms read off updates, distilled sets and messages."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attacked import DESK, DIGITS, network
from fedstill.audit.attributes import (
    ASSUMPTIONS,
    CITATIONS,
    attributes,
    by_bias,
    by_labels,
    by_signs,
    counts_told,
    label_of_one,
    labels_of,
)
from fedstill.audit.seen import seen, update_of
from fedstill.bundle import Bundle
from fedstill.data.shard import Normalisation, Shard
from fedstill.errors import InputError
from fedstill.train import Recipe

PROBE = DIGITS.take(range(1500, 1600))


def of_classes(*classes, each=6):
    held = [row for k in classes for row in (DIGITS.labels == k).nonzero().flatten()[:each].tolist()]
    return DIGITS.take(held)


def shares(shard):
    return torch.tensor(shard.histogram(), dtype=torch.float64) / len(shard)


def apart(a, b):
    return ((a - b).abs().sum() / 2).item()


@pytest.mark.parametrize("classes", [(3,), (1, 8), (0, 2, 4, 6)])
@pytest.mark.parametrize(
    "recipe", [Recipe(epochs=1, lr=0.01, batch=64), Recipe(epochs=3, lr=0.01, batch=8, momentum=0.9)]
)
def test_classes_are_read_off_an_update(classes, recipe):
    client = of_classes(*classes)
    update = update_of(network(), client, recipe, desk=DESK)
    for read in (
        by_signs(update, images=len(client)),
        by_bias(update, images=len(client), local=recipe, probe=PROBE, desk=DESK),
    ):
        assert read.sum().item() == pytest.approx(1)
        assert apart(read, shares(client)) < 0.15
        assert set(read.topk(len(classes)).indices.tolist()) == set(classes)


def test_one_gradient_of_one_class_is_read_exactly():
    client = of_classes(7)
    update = update_of(network(), client, Recipe(epochs=1, lr=0.1, batch=64), desk=DESK)
    assert by_signs(update, images=len(client)).tolist() == [0] * 7 + [1] + [0] * 2
    assert label_of_one(update) == 7


def test_the_equation_of_the_bias_is_exact_where_predictions_are_known():
    client = of_classes(0, 1, 2, 3, 4, 5, 6, 7, 8)
    recipe = Recipe(epochs=1, lr=1e-3, batch=64)
    update = update_of(network(), client, recipe, desk=DESK)
    assert apart(by_bias(update, images=54, local=recipe, probe=client, desk=DESK), shares(client)) < 1e-3


@given(st.lists(st.floats(0, 1), min_size=2, max_size=10).filter(lambda v: sum(v) > 0.01), st.integers(1, 200))
def test_labels_have_the_shares(values, images):
    wanted = torch.tensor(values, dtype=torch.float64)
    wanted = wanted / wanted.sum()
    labels = labels_of(wanted, images)
    assert len(labels) == images
    counts = torch.bincount(labels, minlength=len(values))
    assert (counts - wanted * images).abs().max() <= 1 + 1e-6


def test_a_distilled_set_shows_its_labels():
    plain = Normalisation((0.5,), (0.25,))
    images = torch.zeros(4, 1, 4, 4)
    soft = Shard(images, torch.tensor([[0.6, 0.4, 0.0]] * 3 + [[0.0, 0.0, 1.0]]), ("a", "b", "c"), plain)
    assert by_labels(soft, soft=False).tolist() == [0.75, 0, 0.25]
    assert by_labels(soft, soft=True).tolist() == pytest.approx([0.45, 0.3, 0.25])
    hard = Shard(images, torch.tensor([0, 0, 1, 2]), ("a", "b", "c"), plain)
    assert by_labels(hard, soft=True).tolist() == by_labels(hard, soft=False).tolist() == [0.5, 0.25, 0.25]
    with pytest.raises(InputError, match="empty"):
        by_labels(hard.take([]), soft=False)


def test_counts_in_a_message():
    reply = Bundle().put({"examples": 4}, prototypes={"means": torch.zeros(3, 5), "counts": torch.tensor([1, 0, 3])})
    assert counts_told(reply, 3).tolist() == [0.25, 0, 0.75]
    assert counts_told(reply, 4) is None
    assert counts_told(Bundle().put({"examples": 4}), 3) is None


def test_readings_are_measured_beside_a_guess():
    true = {f"c{k}": [10 * (row == k) for row in range(6)] for k in range(6)}
    truth = {client: torch.tensor(counts, dtype=torch.float64) / 10 for client, counts in true.items()}
    blind = dict.fromkeys(true, torch.full((6,), 1 / 6, dtype=torch.float64))
    told = attributes({"counts": truth, "signs": blind}, true, desk=DESK)
    assert told["counts"]["distance"] == 0
    assert told["counts"]["guess"] == pytest.approx(5 / 6)
    assert told["counts"]["interval"] == pytest.approx([5 / 6, 5 / 6])
    assert told["signs"]["gain"] == pytest.approx(0)
    assert told["signs"]["clients"]["c3"] == pytest.approx({"distance": 5 / 6, "guess": 5 / 6})
    json.dumps(told, allow_nan=False)
    with pytest.raises(InputError, match="'c1' has no image"):
        attributes({}, {"c0": [1, 2], "c1": [0, 0]}, desk=DESK)


def test_a_message_without_a_last_layer_tells_no_class():
    received = network()
    body = {name: tensor + 1 for name, tensor in received.tensors.items() if not name.startswith("head")}
    with pytest.raises(InputError, match="holds no last layer"):
        label_of_one(seen(received, Bundle().put(model=body)))
    still = {**body, **{name: tensor for name, tensor in received.tensors.items() if name.startswith("head")}}
    with pytest.raises(InputError, match="as it was"):
        by_signs(seen(received, Bundle().put(model=still)), images=3)


def test_every_reading_says_whose_it_is_and_what_it_takes():
    assert CITATIONS.keys() == ASSUMPTIONS.keys()
