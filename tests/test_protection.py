"""A privacy budget over rounds: what clients spend, when they refuse, what the server takes of it."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch

import tiny
from fedstill.algorithms.averaging import FedAvg
from fedstill.algorithms.feddgm import FedDGM
from fedstill.algorithms.fedopt import FedAdam, FedAvgM
from fedstill.algorithms.fedprox import FedProx
from fedstill.bundle import Bundle
from fedstill.contract import check_algorithm, tiny_sites, tiny_world
from fedstill.engines.local import LocalEngine
from fedstill.errors import InputError, RunError
from fedstill.experiment import Experiment
from fedstill.privacy import Sampling, epsilon_of, noise_for
from fedstill.rounds import Desk, Reply, rounds
from fedstill.run import drive
from fedstill.seeds import Seed

pytest.importorskip("opacus")

WORLD = tiny_world()
DESK = Desk(Seed.root(0))
WORK = {"epochs": 2, "lr": 0.1, "batch": 5}
BUDGET = {"privacy_epsilon": 8.0, "privacy_delta": 1e-3, "privacy_rounds": 2}
DGM = {"ipc": 1, "distill_steps": 2, "student_steps": 2, "global_epochs": 1, "lr_features": 10.0, "loss_limit": 1e9}
METHODS = [(FedAvg, {}), (FedProx, {"mu": 0.1}), (FedAvgM, {}), (FedAdam, {}), (FedDGM, DGM)]


def make(method=FedAvg, **options):
    return method(world=WORLD, **{**WORK, **options})


def run(algorithm, until=1, cohort=1.0):
    sites = tiny_sites()
    return list(rounds(algorithm, LocalEngine(algorithm, sites, DESK), desk=DESK, until=until, cohort=cohort))


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(("method", "options"), METHODS, ids=lambda each: getattr(each, "__name__", ""))
def test_clients_tell_what_they_spent_and_refuse_a_round_beyond_it(method, options):
    first, second, third = run(make(method, **options, **BUDGET), until=3)
    for client, site in tiny_sites().items():
        sampling = Sampling(len(site.train), WORK["batch"])
        steps = WORK["epochs"] * sampling.steps
        noise = noise_for(8.0, rate=sampling.rate, steps=2 * steps, delta=1e-3)
        for number, done in ((1, first), (2, second)):
            line = done.figures["clients"][client]
            spent = epsilon_of(noise=noise, rate=sampling.rate, steps=number * steps, delta=1e-3)
            assert line["privacy"] == {"epsilon": spent, "delta": 1e-3, "noise": noise}
            assert "loss" not in line  # it would be one more look at the images
        assert 0.99 * 8 < second.figures["clients"][client]["privacy"]["epsilon"] <= 8
    assert not third.aggregated
    assert {failure.client for failure in third.failures} == set(tiny_sites())
    assert all(
        failure.reason.endswith(
            "its budget is spent: epsilon = 8 was to last algorithm.privacy_rounds = 2 of its rounds, and another would go "
            "beyond it"
        )
        for failure in third.failures
    )
    assert same(second.state.groups["model"], third.state.groups["model"])


def test_who_is_drawn_rarely_spends_less():
    done = run(make(**BUDGET | {"privacy_rounds": 4}), until=4, cohort=1)
    times = {client: sum(client in each.cohort for each in done) for client in tiny_sites()}
    last = {client: line["privacy"] for each in done for client, line in each.figures["clients"].items()}
    assert not any(each.failures for each in done)
    assert min(times[client] for client in last) < max(times.values())
    for client, told in last.items():
        sampling = Sampling(len(tiny_sites()[client].train), WORK["batch"])
        steps = times[client] * WORK["epochs"] * sampling.steps
        assert told["epsilon"] == epsilon_of(noise=told["noise"], rate=sampling.rate, steps=steps, delta=1e-3)


def test_training_is_that_of_the_noise_that_is_told():
    from fedstill.privacy import Privacy
    from fedstill.train import Recipe, fit

    algorithm, site = make(**BUDGET, privacy_clip=0.7), tiny_sites()["c00"]
    state = algorithm.init(["c00"], DESK)
    inbox = algorithm.broadcast(state, "c00")
    reply, memory = algorithm.local(inbox, site, Bundle(), DESK.at("here"))
    recipe = Recipe(epochs=2, lr=0.1, batch=5, momentum=0.9, decay=1e-5)
    network = algorithm.models(state)["global"].module()
    fitted = fit(network, site.train, recipe, seed=DESK.at("here").seed, privacy=Privacy(reply.numbers["noise"], 0.7))
    assert same(reply.groups["model"], fitted.tensors)
    assert set(reply.numbers) == {"examples", "epsilon", "delta", "noise"}
    assert memory.numbers == {"private_steps": fitted.steps}


def test_without_a_budget_nothing_changes():
    plain, asked = make(), make(privacy_delta=0.1, privacy_clip=3.0)
    (one,), (other,) = run(plain), run(asked)
    assert same(one.state.groups["model"], other.state.groups["model"])
    assert "privacy" not in one.figures["clients"]["c00"]


def test_the_distance_of_fedprox_comes_after_the_noise():
    """μ = 0 is FedAvg's private training to the bit; a μ of which the distance is all there is keeps the network where it was."""

    def moved(algorithm):
        state = algorithm.init(["c00"], DESK)
        reply, _ = algorithm.local(algorithm.broadcast(state, "c00"), tiny_sites()["c00"], Bundle(), DESK)
        before, after = state.groups["model"], reply.groups["model"]
        return {name: after[name] - before[name] for name in after}

    def length(changes):
        return math.sqrt(sum(float(each.square().sum()) for each in changes.values()))

    free = moved(make(**BUDGET, momentum=0.0))
    assert same(free, moved(make(FedProx, mu=0.0, **BUDGET, momentum=0.0)))
    # with lr · mu = 1 each step forgets all steps before it: what is left is one step of noise and gradient
    held = moved(make(FedProx, mu=10.0, **BUDGET, momentum=0.0, decay=0.0))
    steps = 2 * Sampling(len(tiny_sites()["c00"].train), 5).steps
    assert length(held) < 1.5 * length(free) / math.sqrt(steps)


# --- the server --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"epsilon": None}, "does not say how private it is"),
        ({"noise": 0.0}, "does not say how private it is"),
        ({"epsilon": 8.1}, "it spent epsilon = 8.1 at delta = 0.001, which is beyond algorithm.privacy_epsilon = 8"),
        ({"delta": 0.5}, "beyond algorithm.privacy_epsilon = 8 at algorithm.privacy_delta = 0.001"),
    ],
)
@pytest.mark.parametrize(("method", "options"), [METHODS[0], METHODS[-1]], ids=["FedAvg", "FedDGM"])
def test_what_a_stranger_says_of_its_privacy_is_checked(method, options, numbers, words):
    algorithm = make(method, **options, **BUDGET)
    state = algorithm.init(["c00"], DESK)
    reply, _ = algorithm.local(algorithm.broadcast(state, "c00"), tiny_sites()["c00"], Bundle(), DESK)
    said = {name: number for name, number in (reply.numbers | numbers).items() if number is not None}
    (failure,) = algorithm.aggregate(state, [Reply("c00", Bundle(reply.groups, said))], DESK).failures
    assert words in failure.reason


# --- what is refused, and said -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "options"), METHODS, ids=lambda each: getattr(each, "__name__", ""))
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"privacy_rounds": None}, "say in algorithm.privacy_rounds how many rounds of a client it is to last"),
        ({"privacy_epsilon": None}, "there is no budget to last so long"),
    ],
)
def test_a_budget_says_how_long_it_lasts(method, options, wrong, sentence):
    with pytest.raises(InputError, match=sentence):
        make(method, **options, **BUDGET | wrong).init(["c00"], DESK)


def test_batch_norm_is_refused_before_a_client_works():
    batched = replace(WORLD.architecture, options={**WORLD.architecture.options, "norm": "batch"})
    with pytest.raises(InputError, match="a layer of the network learns from a whole batch"):
        FedAvg(world=replace(WORLD, architecture=batched), **WORK, **BUDGET).init(["c00"], DESK)


def test_a_delta_that_shows_an_image_is_the_clients_failure():
    (only,) = run(make(**BUDGET | {"privacy_delta": 0.5}))
    assert not only.aggregated
    assert all("allows one of the client's" in failure.reason for failure in only.failures)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("fednova", "update.epsilon makes what its clients send private"),
        ("moon", "its loss compares features of images"),
        ("scaffold", "control variates"),
        ("fedproto", "class means"),
        ("vhl", "draws the features"),
        ("fedlgd", "matching alone, which virtual.privacy_epsilon makes private"),
    ],
)
def test_methods_without_a_budget_say_why(name, why):
    with pytest.raises(
        InputError, match=rf"algorithm\.privacy_epsilon = 8\.0: '{name}' has no such budget, for .*{why}"
    ):
        Experiment.from_table({"algorithm": {"name": name, "privacy_epsilon": 8.0}})


def test_one_shot_needs_no_rounds_and_says_so():
    with pytest.raises(InputError) as caught:
        Experiment.from_table({"algorithm": {"name": "oneshot", "privacy_epsilon": 8.0, "privacy_rounds": 2}})
    assert str(caught.value) == (
        "algorithm.privacy_rounds = 2: 'oneshot' has no such option, for its clients send once, so that its budget lasts for "
        "that and needs no rounds; leave it out"
    )


def test_virtual_images_are_refused():
    asked = tiny.experiment(tiny.FEDAVG | BUDGET, virtual={"ipc": 1, "steps": 0})
    with pytest.raises(
        InputError, match="would protect the virtual images that clients train on and not the real ones"
    ):
        asked.build()


def test_a_run_longer_than_its_budget_is_told_so():
    inside, beyond = (make(**BUDGET).remarks(count) for count in (2, 3))
    assert len(inside) == 1
    assert inside[0].startswith("algorithm.privacy_epsilon = 8 covers each single training image of a client")
    assert beyond[1].startswith("algorithm.privacy_rounds = 2 and the run has 3 rounds")
    assert make().remarks(9) == ()


# --- what noise cannot cover ------------------------------------------------------------------------------------------


def test_two_budgets_of_one_seed_do_not_share_their_noise():
    """Else two such runs would be two equations for what is under it."""
    parts = [tiny.experiment(tiny.FEDAVG | BUDGET | {"privacy_epsilon": epsilon}).build() for epsilon in (1.0, 8.0)]
    again = tiny.experiment(tiny.FEDAVG | BUDGET | {"privacy_epsilon": 8.0}, rounds=9).build()
    assert parts[0].seed != parts[1].seed
    assert parts[1].seed == again.seed  # a run that is extended goes on with its own
    assert same(parts[0].start.groups["model"], parts[1].start.groups["model"])
    plain = tiny.experiment(tiny.FEDAVG).build()
    assert plain.seed == Seed.root(0).at("run")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"data": {"zca": True}}, "data.zca = true: whitening is made of all training images"),
        ({"evaluate": {"gradients": True}}, "evaluate.gradients = true: it compares with gradients of real images"),
    ],
    ids=str,
)
def test_what_is_taken_from_images_beside_the_noise_is_refused(wrong, sentence):
    algorithm = {"name": "feddm", "ipc": 1, "match_steps": 1, "privacy_clip": 1.0, **BUDGET}
    asked = tiny.experiment(algorithm)
    table = {key: {**asdict(getattr(asked, key)), **value} for key, value in wrong.items()}
    with pytest.raises(InputError, match=sentence):
        replace(asked, **{key: type(getattr(asked, key))(**value) for key, value in table.items()}).build()


def test_a_mean_of_the_images_is_told_and_public_numbers_are_not():
    asked = tiny.experiment(tiny.FEDAVG | BUDGET)
    own = replace(asked, data=replace(asked.data, mean=None, std=None)).build().remarks(2)
    public = replace(asked, data=replace(asked.data, mean=(0.5,), std=(0.5,))).build().remarks(2)
    assert own[0].startswith("data.mean and data.std are of the training images")
    assert own[1:] == public


LARGE = {"data": {"limit": 400}, "partition": {"clients": 2, "classes": 10}}


def experiment_of(delta, **settings):
    """One whose clients have more than 100 images, each."""
    return tiny.experiment(
        tiny.FEDAVG | {"privacy_epsilon": 8.0, "privacy_delta": delta, "privacy_rounds": 2}, **LARGE, **settings
    )


@pytest.mark.parametrize("delta", [0.011, 0.9999])
def test_a_delta_near_one_is_none(delta):
    from fedstill.algorithms.updates import UpdateSettings
    from fedstill.deployment.privacy import PrivacySettings
    from fedstill.settings import validated

    with pytest.raises(InputError, match=r"algorithm\.privacy_delta = .*: must be at most 0\.01"):
        experiment_of(delta)
    for kind, table in ((UpdateSettings, "update"), (PrivacySettings, "privacy")):
        with pytest.raises(InputError, match=rf"{table}\.delta = .*: must be at most 0\.01"):
            validated(kind, {"clip": 1.0, "delta": delta}, where=table)


def test_a_delta_that_allows_an_image_is_refused_before_the_run():
    clients = experiment_of(1e-5).build().sites
    most = max(len(site.train) for site in clients.values())
    (largest, *_) = [name for name, site in clients.items() if len(site.train) == most]
    said = rf"algorithm\.privacy_delta = 0\.01 allows one of the {most} training images of '{largest}' to be shown: set it below"
    with pytest.raises(InputError, match=said):
        experiment_of(0.01).build()
    with pytest.raises(InputError, match=said):
        experiment_of(0.01, update={"clip": 1.0}).build()
    virtual = {"start": "noise", "privacy_epsilon": 8.0, "privacy_clip": 8.0, "privacy_delta": 0.01}
    for algorithm in (tiny.FEDAVG, {"name": "fedlgd"}):
        with pytest.raises(InputError, match=r"virtual\.privacy_delta = 0\.01 allows one of"):
            tiny.experiment(algorithm, **LARGE, virtual=virtual).build()
    with pytest.raises(InputError, match=r"algorithm\.privacy_delta = 0\.01 allows one of"):
        tiny.experiment(
            {"name": "feddm", "privacy_noise": 1.0, "privacy_clip": 1.0, "privacy_delta": 0.01}, **LARGE
        ).build()
    # without a budget a delta is that of nothing
    tiny.experiment(tiny.FEDAVG | {"privacy_delta": 0.01}, **LARGE).build()


# --- runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("method", "options"), METHODS, ids=lambda each: getattr(each, "__name__", ""))
def test_private_methods_keep_the_contract(method, options):
    check_algorithm(method, WORK | options | BUDGET | {"privacy_rounds": 10})


def test_a_run_goes_on_to_the_same_bits_and_extended_it_refuses(tmp_path):
    budget = {"privacy_epsilon": 8.0, "privacy_delta": 1e-3, "privacy_rounds": 2}
    asked = tiny.experiment(tiny.FEDAVG | budget, rounds=2)
    drive(asked, out=tmp_path / "straight")
    drive(replace(asked, rounds=1), out=tmp_path / "parts")
    drive(asked, out=tmp_path / "parts", resume=True)
    assert tiny.rows(tmp_path / "straight") == tiny.rows(tmp_path / "parts")
    with pytest.raises(RunError, match="no client gave a usable reply in round 3: 'c00': its budget is spent"):
        drive(replace(asked, rounds=3), out=tmp_path / "parts", resume=True)
    assert tiny.rows(tmp_path / "straight") == tiny.rows(tmp_path / "parts")
    lines = json.loads((tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()[1])["clients"]
    assert all(0 < line["privacy"]["epsilon"] <= 8 for line in lines)
