import pytest
import torch
from torch import nn

from fedstill.errors import InputError
from fedstill.models import MODELS
from fedstill.models.architecture import Architecture, Network
from fedstill.models.heads import linear_head
from fedstill.seeds import Seed


class Odd(Network):
    """Two linear layers of one shape, of which only the second is the head; or a head that is more than a layer."""

    def __init__(self, size, classes, scaled):
        super().__init__()
        self.before = nn.Linear(size[0] * size[1], classes)
        self.middle = nn.Linear(classes, classes)
        self.last = nn.Linear(classes, classes)
        self.scaled = scaled

    def features(self, inputs):
        return self.middle(self.before(inputs.flatten(1)))

    def classify(self, features):
        return self.last(features) * (2 if self.scaled else 1)


def odd(*, channels, size, classes, scaled: bool = False):
    return Odd(size, classes, scaled)


@pytest.mark.parametrize("name", MODELS)
def test_every_network_of_the_table_has_one(name):
    architecture = Architecture(name=name, channels=1, size=(32, 32), classes=3)
    head, network = linear_head(architecture, wanted_for="a test"), architecture.build(Seed.root(0)).eval()
    tensors = network.state_dict()
    features = torch.randn(4, head.width, generator=Seed.root(0).torch())
    logits = torch.nn.functional.linear(features, tensors[head.weight], tensors[head.bias])
    torch.testing.assert_close(network.classify(features), logits)


def test_a_users_own_is_tried_out():
    architecture = Architecture(name="test_heads:odd", channels=1, size=(4, 4), classes=3)
    assert linear_head(architecture, wanted_for="a test").weight == "last.weight"


def test_another_kind_of_head_is_refused():
    architecture = Architecture(name="test_heads:odd", channels=1, size=(4, 4), classes=3, options={"scaled": True})
    with pytest.raises(
        InputError, match=r"model\.name = 'test_heads:odd': a test needs a network whose classify is one"
    ):
        linear_head(architecture, wanted_for="a test")


def test_what_is_split_is_joined_again():
    architecture = Architecture(name="convnet", channels=1, size=(8, 8), classes=5, options={"depth": 2, "width": 4})
    head = linear_head(architecture, wanted_for="a test")
    tensors = architecture.build(Seed.root(0)).state_dict()
    front, rows = head.split(tensors, 3)
    assert front[head.weight].shape == (3, head.width)
    assert rows["bias"].shape == (2,)
    joined = head.join(front, rows)
    assert joined.keys() == tensors.keys()
    assert all(torch.equal(joined[name], tensors[name]) for name in tensors)
