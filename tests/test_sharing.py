"""FedDM: what clients send, what the server makes of it, and what it refuses."""

from dataclasses import replace

import pytest
import torch

import tiny
from fedstill.algorithms.sharing import FedDM, received
from fedstill.bundle import Bundle
from fedstill.contract import check_algorithm, tiny_sites, tiny_world
from fedstill.cost import estimate
from fedstill.data.shard import Shard
from fedstill.engines.local import LocalEngine
from fedstill.errors import InputError
from fedstill.privacy import epsilon_of, noise_for
from fedstill.rounds import Desk, Reply, rounds
from fedstill.seeds import Seed

WORLD = tiny_world()
DESK = Desk(Seed.root(0))
SMALL = {"ipc": 2, "match_steps": 2, "global_epochs": 2, "augmentation": "none", "global_augmentation": "none"}


def make(**options):
    return FedDM(world=WORLD, **{**SMALL, **options})


def run(algorithm, sites, until=1):
    return list(rounds(algorithm, LocalEngine(algorithm, sites, DESK), desk=DESK, until=until))


def one_client(rows, **options):
    whole = tiny_sites()["c00"]
    site = replace(whole, train=whole.train.take(rows))
    algorithm = make(**options)
    state = algorithm.init(["c00"], DESK)
    reply, _ = algorithm.local(algorithm.broadcast(state, "c00"), site, Bundle(), DESK)
    return algorithm, state, reply, site.train


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"networks": "random_first", "logits": False, "start": "real"},
        {"networks": "random", "privacy_noise": 1.0, "privacy_clip": 1.0},
        {"least": 7, "global_models": ({"name": "convnet", "options": {"depth": 2, "width": 3}},)},
    ],
    ids=lambda options: "+".join(options),
)
def test_options_keep_the_contract(options):
    from fedstill.models.choice import Choice

    models = tuple(Choice(**choice) for choice in options.get("global_models", ()))
    check_algorithm(FedDM, SMALL | options | {"global_models": models})


@pytest.mark.parametrize("networks", ["random", "random_first"])
def test_random_networks_with_batch_norm_are_refused_before_a_client_works(networks):
    batched = replace(WORLD.architecture, options={**WORLD.architecture.options, "norm": "batch"})
    algorithm = FedDM(world=replace(WORLD, architecture=batched), **SMALL, networks=networks)
    with pytest.raises(InputError, match="BatchNorm, which has seen no image"):
        algorithm.init(["c00"], DESK)
    replace(algorithm, networks="ball").init(["c00"], DESK)


def test_a_client_sends_images_of_the_classes_it_holds():
    labels = tiny_sites()["c00"].train.labels
    _, _, reply, _ = one_client((labels != 1).nonzero().flatten())
    sent = reply.groups["synthetic"]
    assert sent["labels"].tolist() == [0, 0, 2, 2]
    assert sent["images"].shape == (4, 1, 8, 8)
    assert sent["images"].dtype == torch.float32
    assert "model" not in reply.groups


@pytest.mark.parametrize("start", ["noise", "real"])
def test_one_image_is_enough(start):
    algorithm, state, reply, train = one_client([3], start=start)
    assert reply.groups["synthetic"]["labels"].tolist() == [int(train.labels[0])] * 2
    outcome = algorithm.aggregate(state, [Reply("c00", reply)], DESK)
    assert not outcome.failures
    assert outcome.figures["clients"]["c00"]["synthetic"] == 2


def test_a_start_from_real_images_is_them():
    _, _, reply, train = one_client(range(12), start="real", lr_images=1e-12)
    sent = reply.groups["synthetic"]["images"]
    real = train.images.float() / 255
    nearest = (sent[:, None] - real[None]).flatten(2).abs().amax(2).amin(1)
    assert nearest.max() < 1e-5


def test_a_client_with_too_few_images_of_every_class_sends_none_and_is_no_failure():
    algorithm, state, reply, _ = one_client(range(6), least=10)
    assert len(reply.groups["synthetic"]["images"]) == 0
    outcome = algorithm.aggregate(state, [Reply("c00", reply)], DESK)
    assert not outcome.failures
    assert outcome.figures["clients"]["c00"]["synthetic"] == 0
    assert outcome.figures["moved"] == 0
    assert not outcome.state.members("synthetic")


def test_a_round_leaves_sets_and_a_trained_network():
    (first, second) = run(make(), tiny_sites(), until=2)
    assert set(first.state.members("synthetic")) == set(tiny_sites())
    assert first.figures["union"] == sum(client["synthetic"] for client in first.figures["clients"].values())
    assert first.figures["moved"] > 0
    assert set(second.figures["clients"]["c00"]["matching"]) >= {"start", "end", "best", "sick"}


def test_a_tiny_run_improves_over_its_start():
    algorithm = make(match_steps=30, global_epochs=40, global_lr=0.1, global_batch=8, ipc=3)
    sites = tiny_sites()
    test = Shard.join([site.train for site in sites.values()])

    def accuracy(state):
        logits = algorithm.models(state)["global"].module().eval()(test.inputs())
        return (logits.argmax(1) == test.labels).float().mean().item()

    before = accuracy(algorithm.init(list(sites), DESK.at("init")))
    done = run(algorithm, sites, until=2)
    assert accuracy(done[-1].state) > max(0.8, before)
    for client in done[0].figures["clients"].values():
        assert client["matching"]["end"] < client["matching"]["start"]


def spent_of(done, client="c00"):
    return done.figures["clients"][client]["privacy"]


def test_with_noise_no_loss_is_sent_and_the_guarantee_is_told():
    algorithm = make(privacy_noise=10.0, privacy_clip=1.0)
    (first, second) = run(algorithm, tiny_sites(), until=2)
    assert "matching" not in first.figures["clients"]["c00"]
    for rounds_done, done in ((1, first), (2, second)):
        steps = rounds_done * SMALL["match_steps"]
        wanted = epsilon_of(noise=10.0, rate=1.0, steps=steps, delta=1e-5)  # classes have fewer images than real_batch
        assert spent_of(done) == {"epsilon": wanted, "delta": 1e-5, "noise": 10.0}


def test_a_budget_lasts_its_rounds_and_no_further_one():
    algorithm = make(privacy_epsilon=5.0, privacy_clip=1.0, privacy_rounds=2, real_batch=3)
    first, second, third = run(algorithm, tiny_sites(), until=3)
    counts = tiny_sites()["c00"].train.histogram()
    rate = min(1.0, 3 / min(count for count in counts if count))
    told = [spent_of(done) for done in (first, second)]
    assert told[0]["noise"] == told[1]["noise"] == noise_for(5.0, rate=rate, steps=2 * SMALL["match_steps"], delta=1e-5)
    assert 0 < told[0]["epsilon"] < told[1]["epsilon"] <= 5.0
    assert not third.aggregated
    assert all("its budget is spent" in failure.reason for failure in third.failures)


def test_the_sampling_of_classes_makes_noise_smaller():
    def noise(batch):
        (only,) = run(make(privacy_epsilon=5.0, privacy_clip=1.0, privacy_rounds=1, real_batch=batch), tiny_sites())
        return spent_of(only)["noise"]

    assert noise(1) < 0.9 * noise(256)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"epsilon": None}, "does not say how private it is"),
        ({"noise": 0.0}, "does not say how private it is"),
        ({"epsilon": 5.1}, "which is beyond algorithm.privacy_epsilon = 5"),
    ],
)
def test_what_a_stranger_says_of_its_privacy_is_checked(numbers, words):
    algorithm = make(privacy_epsilon=5.0, privacy_clip=1.0, privacy_rounds=1)
    state = algorithm.init(["c00"], DESK)
    reply, _ = algorithm.local(algorithm.broadcast(state, "c00"), tiny_sites()["c00"], Bundle(), DESK)
    said = {name: number for name, number in (reply.numbers | numbers).items() if number is not None}
    bad = Bundle(reply.groups, said)
    (failure,) = algorithm.aggregate(state, [Reply("c00", bad)], DESK).failures
    assert words in failure.reason


def test_files_of_an_older_version_are_read():
    from fedstill.method import Method

    method = Method.parse({"name": "feddm", "noise_multiplier": 2.0, "clip": 3.0, "delta": 1e-4})
    assert (method.options.privacy_noise, method.options.privacy_clip, method.options.privacy_delta) == (2.0, 3.0, 1e-4)
    with pytest.raises(
        InputError, match=r"algorithm\.clip: it is called algorithm\.privacy_clip now, which is there too"
    ):
        Method.parse({"name": "feddm", "clip": 3.0, "privacy_clip": 3.0})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"privacy_noise": 1.0}, "set algorithm.privacy_clip"),
        ({"privacy_noise": 1.0, "privacy_clip": 1.0, "start": "real"}, "use algorithm.start = 'noise'"),
        ({"augmentation": "colour"}, "algorithm.augmentation"),
        ({"privacy_epsilon": 8.0, "privacy_clip": 1.0}, "say in algorithm.privacy_rounds how many rounds"),
        ({"privacy_rounds": 3}, "there is no budget to last so long"),
        ({"privacy_epsilon": 8.0, "privacy_rounds": 3}, "set algorithm.privacy_clip"),
        (
            {"privacy_epsilon": 8.0, "privacy_rounds": 3, "privacy_clip": 1.0, "privacy_noise": 1.0},
            "leave one of them out",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_a_client_works(options, sentence):
    with pytest.raises(InputError, match=sentence):
        make(**options).init(["c00"], DESK)


IMAGES, LABELS = torch.zeros(2, 1, 8, 8), torch.tensor([0, 2])


@pytest.mark.parametrize(
    ("group", "sentence"),
    [
        ({}, "where 'images' and 'labels' are due"),
        ({"images": IMAGES, "labels": LABELS, "more": LABELS}, "where 'images' and 'labels' are due"),
        ({"images": IMAGES.double(), "labels": LABELS}, r"torch.float64 \[2, 1, 8, 8\]"),
        ({"images": IMAGES[:, :, :4], "labels": LABELS}, r"is due"),
        ({"images": IMAGES, "labels": LABELS[:1]}, r"torch.int64 \[2\] is due"),
        ({"images": IMAGES, "labels": LABELS.float()}, r"torch.int64 \[2\] is due"),
        ({"images": IMAGES, "labels": torch.tensor([0, 3])}, "not all of 0 to 2"),
        ({"images": IMAGES, "labels": torch.tensor([-1, 0])}, "not all of 0 to 2"),
        ({"images": torch.zeros(5, 1, 8, 8), "labels": torch.zeros(5, dtype=torch.int64)}, "more than 2 images"),
    ],
)
def test_a_strangers_set_is_looked_at(group, sentence):
    with pytest.raises(InputError, match=sentence):
        received(group, WORLD, ipc=2)
    bundle = Bundle().put({"examples": 5}, synthetic=group)
    algorithm = make()
    state = algorithm.init(["c00"], DESK)
    outcome = algorithm.aggregate(state, [Reply("c00", bundle)], DESK)
    assert [failure.client for failure in outcome.failures] == ["c00"]
    assert outcome.state.groups["model"].keys() == state.groups["model"].keys()


def test_the_cost_of_matching_is_counted_by_its_steps():
    table = {"name": "feddm", "ipc": 1, "augmentation": "none", "global_augmentation": "none", "global_epochs": 2}
    few, many = (
        estimate(tiny.experiment({**table, "match_steps": steps}, data={"size": 8, "limit": 60, "test_limit": 20}))
        for steps in (1, 500)
    )
    assert many.seconds["clients"] > 5 * few.seconds["clients"]
    assert "distil" not in many.seconds
    assert many.seconds["train"] > 0
