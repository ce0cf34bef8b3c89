"""Every algorithm through one table."""

import pickle
from dataclasses import dataclass, fields, replace

import pytest

from fedstill import contract
from fedstill.algorithms import ALGORITHMS
from fedstill.algorithms.averaging import FedAvg
from fedstill.algorithms.feddgm import FedDGM
from fedstill.algorithms.fedlgd import FedLGD
from fedstill.algorithms.virtual import VirtualSettings
from fedstill.bundle import Bundle
from fedstill.contract import CLAUSES, check_algorithm
from fedstill.data.whitening import estimate
from fedstill.tables import resolve

SMALL = {
    "distill_steps": 2,
    "student_steps": 2,
    "ipc": 1,
    "global_epochs": 2,
    "epochs": 2,
    "lr_features": 10.0,
    "loss_limit": 1e9,
}
LGD = {
    "epochs": 2,
    "lr": 0.05,
    "selected": (1, 3),
    "match_steps": 2,
    "distill_steps": 2,
    "global_ipc": 2,
    "virtual": VirtualSettings(ipc=2, steps=2),
}
OPTIONS = {
    "fedavg": {"epochs": 2},
    "centralised": {"epochs": 2},
    "fedprox": {"epochs": 2},
    "fednova": {"epochs": 2, "batch": 8},
    "scaffold": {"epochs": 2},
    "fedavgm": {"epochs": 2},
    "fedadam": {"epochs": 2},
    "moon": {"epochs": 2},
    "fedproto": {"epochs": 2},
    "vhl": {"epochs": 2, "virtual_ipc": 5, "virtual_batch": 8},
    "feddm": {"ipc": 1, "match_steps": 2, "global_epochs": 2},
    "fedlgd": LGD,
    "oneshot": {
        "experts": 1,
        "expert_epochs": 2,
        "span": 1,
        "latest": 2,
        "student_steps": 2,
        "ipc": 1,
        "distill_steps": 2,
        "check_every": 1,
        "judges": 1,
        "judge_epochs": 1,
        "lr_images": 10.0,
        "global_epochs": 2,
    },
    "feddgm": SMALL,
    "prioronly": SMALL | {"generator": "fedstill.contract:tiny_prior"},
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_method_of_the_table(name):
    entry = ALGORITHMS[name]
    factory = resolve({name: entry.factory}, name, "algorithm.name")
    assert check_algorithm(factory, OPTIONS[name] | dict(entry.fixed)) == list(CLAUSES)


@pytest.mark.parametrize("norms", ["average", "local"])
@pytest.mark.parametrize(
    "name",
    # PriorOnly's clients do nothing, and FedLGD refuses BatchNorm
    [name for name in ALGORITHMS if name not in ("prioronly", "fedlgd")],
)
def test_batch_norm_takes_a_client_of_one_image(name, norms, monkeypatch):
    world = contract.tiny_world()
    batched = replace(world.architecture, options={**world.architecture.options, "norm": "batch"})
    monkeypatch.setattr(contract, "tiny_world", lambda: replace(world, architecture=batched))
    entry = ALGORITHMS[name]
    factory = resolve({name: entry.factory}, name, "algorithm.name")
    known = {each.name for each in fields(factory)}
    options = OPTIONS[name] | dict(entry.fixed) | ({"norms": norms} if "norms" in known else {})
    algorithm = factory(world=contract.tiny_world(), **options)
    assert CLAUSES["one image or one class is enough, and no image stops no other client"](algorithm) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["oneshot", "feddm", "feddgm", "fedlgd", "vhl"])
def test_methods_that_make_images_make_whitened_ones(name, monkeypatch):
    world = contract.tiny_world()
    whitening = estimate(contract.tiny_sites()["c00"].train.images, 0.1)
    normalisation = replace(world.normalisation, whitening=whitening)
    monkeypatch.setattr(contract, "tiny_world", lambda: replace(world, normalisation=normalisation))
    factory = resolve({name: ALGORITHMS[name].factory}, name, "algorithm.name")
    check_algorithm(factory, OPTIONS[name] | dict(ALGORITHMS[name].fixed))


@pytest.mark.parametrize(
    "options",
    [
        {"warm_start": True, "latent_optimiser": "adam", "lr_features": 0.05},
        {
            "labels": "soft",
            "generator": "fedstill.contract:tiny_prior",
            "prior_samples": 2,
            "global_models": ({"name": "convnet", "options": {"depth": 2, "width": 3}},),
        },
        {"student_batch": 2, "keep": "best", "gradient": "truncated"},
    ],
    ids=lambda options: "+".join(options),
)
def test_feddgm_with_options(options):
    from fedstill.models.choice import Choice

    models = tuple(Choice(**choice) for choice in options.get("global_models", ()))
    check_algorithm(FedDGM, SMALL | options | {"global_models": models})


@pytest.mark.parametrize(
    "options",
    [
        {"selected_training": "both", "anchors": "kept"},
        {"selected_training": "both", "average": "gradients", "match_at": "new"},
        {"regulariser": "mmd", "weighting": "examples", "chunk": 2},
    ],
    ids=lambda options: "+".join(options),
)
def test_fedlgd_with_options(options):
    check_algorithm(FedLGD, LGD | options)


@dataclass(frozen=True, kw_only=True)
class Mutating(FedAvg):
    def aggregate(self, state, replies, desk):
        outcome = super().aggregate(state, replies, desk)
        for tensor in state.groups["model"].values():
            tensor.zero_()
        return outcome


@dataclass(frozen=True, kw_only=True)
class Weightless(FedAvg):
    def local(self, inbox, site, memory, desk):
        reply, memory = super().local(inbox, site, memory, desk)
        return Bundle(reply.groups, {**reply.numbers, "examples": 1}), memory


@dataclass(frozen=True, kw_only=True)
class Unseeded(FedAvg):
    def local(self, inbox, site, memory, desk):
        import torch

        torch.randn(1)  # leaves the global generator moved
        reply, memory = super().local(inbox, site, memory, desk)
        model = {name: tensor + torch.rand(1) for name, tensor in reply.groups["model"].items()}
        return reply.put(model=model), memory


@dataclass(frozen=True, kw_only=True)
class Boasting(FedAvg):
    def score(self, inbox, site, memory, desk):
        return super().score(inbox, site, memory, desk).put({"validation_correct": len(site.validation) + 1})


@dataclass(frozen=True, kw_only=True)
class Silent(FedAvg):
    def score(self, inbox, site, memory, desk):
        return super().score(inbox, site, memory, desk).drop("statistics:test")


@dataclass(frozen=True, kw_only=True)
class Telling(FedAvg):
    def score(self, inbox, site, memory, desk):
        return super().score(inbox, site, memory, desk).put(synthetic={"images": site.test.images})


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (Mutating, "inputs are not mutated"),
        (Weightless, "a reply carries its weight"),
        (Unseeded, "order of arrival|same bits"),
        (Boasting, "scores are counts: the reply of score is refused: its validation counts are no counts: 7 of 6"),
        (Silent, "scores are counts: score counts 0 test images, there are 6"),
        (Telling, "scores are counts: score sends the group 'synthetic'"),
    ],
)
def test_a_broken_algorithm_is_told_its_clause(broken, clause):
    with pytest.raises(AssertionError, match=clause):
        check_algorithm(broken, {"epochs": 1})


def test_algorithms_go_to_worker_processes():
    from fedstill.contract import tiny_world

    algorithm = FedDGM(world=tiny_world(), **SMALL)
    assert pickle.loads(pickle.dumps(algorithm)) == algorithm
