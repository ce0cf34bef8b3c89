from __future__ import annotations

import operator
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, recall_score
from torch import nn
from torch.nn import functional as F

from fedstill.bundle import Bundle
from fedstill.data.shard import Normalisation, Shard
from fedstill.errors import InputError
from fedstill.scores import BINS, Scores, score
from fedstill.seeds import Seed


class Told(nn.Module):
    """A classifier whose logits stand in its images' pixels."""

    def forward(self, inputs):
        return inputs.flatten(1)


def shard(logits: torch.Tensor, labels: torch.Tensor) -> Shard:
    """Images that :class:`Told` reads ``logits`` off."""
    classes = tuple(f"k{number}" for number in range(logits.shape[1]))
    return Shard(logits[:, None, None, :].float(), labels, classes, Normalisation((0.0,), (1.0,)))


def example(count: int, classes: int, *, seed: int = 0, present: int | None = None, scale: float = 2.0):
    draw = Seed.root(seed).numpy()
    logits = torch.from_numpy(draw.normal(0, scale, (count, classes))).float()
    labels = torch.from_numpy(draw.integers(present or classes, size=count))
    return logits, labels


def ece(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Guo et al. (2017), eq. 3, as it is written."""
    confidence, guess = probabilities.max(1), probabilities.argmax(1)
    error = 0.0
    for low, high in zip(np.arange(BINS) / BINS, np.arange(1, BINS + 1) / BINS, strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = np.abs((guess[inside] == labels[inside]).mean() - confidence[inside].mean())
            error += inside.mean() * gap
    return error


@given(st.integers(1, 400), st.integers(2, 7), st.integers(0, 99), st.floats(0.01, 20))
@settings(max_examples=60, deadline=None)
def test_figures_are_those_of_scikit_learn_and_of_the_formula(count, classes, seed, scale):
    # the last class never occurs
    logits, labels = example(count, classes, seed=seed, present=classes - 1, scale=scale)
    found = score(Told(), shard(logits, labels))
    guesses, truth = logits.argmax(1).numpy(), labels.numpy()
    names = np.arange(classes)
    np.testing.assert_array_equal(found.confusion.numpy(), confusion_matrix(truth, guesses, labels=names))
    assert found.examples == count
    assert found.accuracy == pytest.approx(accuracy_score(truth, guesses))
    recalls = recall_score(truth, guesses, labels=np.unique(truth), average=None, zero_division=0)
    assert [recall for recall in found.per_class if recall is not None] == pytest.approx(list(recalls))
    assert found.per_class[-1] is None
    # scikit-learn's own warns of classes that are guessed and never occur
    assert found.balanced_accuracy == pytest.approx(recalls.mean())
    assert found.calibration_error == pytest.approx(ece(logits.double().softmax(1).numpy(), truth), abs=1e-12)


def test_balanced_accuracy_is_that_of_scikit_learn():
    logits, labels = example(300, 4)
    found = score(Told(), shard(logits, labels))
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)))


def test_a_probability_on_an_edge_belongs_to_the_bin_below():
    # a certain guess has confidence 1 and lies in the last bin, an undecided one between two classes 1/2
    found = score(Told(), shard(torch.tensor([[100.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])))
    assert found.bins[:, 0].nonzero().flatten().tolist() == [7, 14]
    assert found.calibration_error == pytest.approx(0.25)


@given(st.lists(st.integers(0, 60), min_size=2, max_size=5))
@settings(max_examples=25, deadline=None)
def test_parts_add_up_to_the_whole(sizes):
    logits, labels = example(sum(sizes), 3)
    whole = score(Told(), shard(logits, labels))
    rows = torch.split(torch.arange(sum(sizes)), sizes)
    parts = reduce(operator.add, [score(Told(), shard(logits[each], labels[each])) for each in rows])
    assert torch.equal(parts.confusion, whole.confusion)
    torch.testing.assert_close(parts.bins, whole.bins)


def test_soft_labels_count_for_their_largest_entry():
    logits, labels = example(50, 3)
    soft = F.one_hot(labels, 3).float() * 0.8 + 0.1
    hard = score(Told(), shard(logits, labels))
    assert torch.equal(score(Told(), shard(logits, soft)).confusion, hard.confusion)


def test_no_image_gives_no_figure():
    none = score(Told(), shard(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)))
    assert none.examples == none.correct == 0
    assert none.accuracy is none.balanced_accuracy is none.calibration_error is None
    assert none.per_class == (None, None, None)


def test_a_network_that_is_no_longer_usable_is_scored_all_the_same():
    found = score(Told(), shard(torch.full((4, 3), torch.nan), torch.tensor([0, 1, 2, 0])))
    assert found.examples == 4
    assert np.isnan(found.calibration_error)


@given(st.integers(0, 200), st.integers(2, 6), st.floats(0.01, 50))
@settings(max_examples=40, deadline=None)
def test_a_message_carries_scores_and_nothing_else(count, classes, scale):
    found = score(Told(), shard(*example(count, classes, scale=scale)))
    sent = Bundle.from_bytes(Bundle().put(**{"statistics:test": found.group()}).to_bytes())
    again = Scores.read(sent.groups["statistics:test"], classes=classes)
    assert torch.equal(again.confusion, found.confusion)
    assert torch.equal(again.bins, found.bins)
    # the size does not say how many images there are
    assert sent.nbytes == 8 * (classes**2 + 3 * BINS)


def good() -> dict[str, torch.Tensor]:
    return dict(score(Told(), shard(*example(40, 3))).group())


def changed(name: str, place: tuple[int, int], value: float):
    def change(group):
        group[name] = group[name].clone()
        group[name][place] = value

    return change


HOSTILE = {
    "nothing": (lambda group: group.clear(), "where 'bins' and 'confusion' are due"),
    "half": (lambda group: group.pop("bins"), "where 'bins' and 'confusion' are due"),
    "more": (lambda group: group.update(rows=torch.zeros(3)), "where 'bins' and 'confusion' are due"),
    "classes": (lambda group: group.update(confusion=torch.zeros(4, 4, dtype=torch.int64)), r"\[3, 3\] is due"),
    "bins": (lambda group: group.update(bins=torch.zeros(10, 3, dtype=torch.float64)), r"\[15, 3\] is due"),
    "floats": (lambda group: group.update(confusion=group["confusion"].double()), "torch.int64"),
    "negative count": (changed("confusion", (0, 1), -1), "some are negative"),
    "negative bin": (changed("bins", (3, 1), -1e-3), "some are negative"),
    "not finite": (changed("bins", (3, 1), torch.nan), "not finite"),
    "infinite": (changed("bins", (3, 0), torch.inf), "not finite"),
    "overflow": (changed("confusion", (0, 0), 2**63 - 1), "claim more than"),
    "huge": (changed("bins", (0, 0), 1e300), "claim more than"),
    "one more": (changed("confusion", (0, 1), 40), "do not agree"),
    "part of an image": (changed("bins", (14, 0), 0.5), "no whole number"),
    "more right than there are": (changed("bins", (14, 2), 41), "no whole number, or more of them are right"),
    "too sure": (changed("bins", (14, 1), 41), "outside the bin"),
    "too unsure": (changed("bins", (14, 1), 0), "outside the bin"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_counts_is_refused(name):
    group = good()
    change, sentence = HOSTILE[name]
    change(group)
    with pytest.raises(InputError, match=sentence) as caught:
        Scores.read(group, classes=3)
    assert "\n" not in str(caught.value)


@given(
    st.sampled_from(["confusion", "bins"]),
    st.sampled_from([torch.float64, torch.int64, torch.uint8, torch.float16, torch.bool]),
    st.lists(st.integers(0, 16), max_size=3),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_any_tensor_is_read_or_refused(name, kind, shape):
    group = good() | {name: torch.ones(shape).to(kind)}
    with pytest.raises(InputError):
        Scores.read(group, classes=3)
