"""A privacy budget of virtual images: FedLGD's, and that of any method on top of them."""

from dataclasses import replace

import pytest
import torch

import tiny
from fedstill.algorithms.averaging import FedAvg
from fedstill.algorithms.contrast import MOON
from fedstill.algorithms.fedlgd import FedLGD
from fedstill.algorithms.virtual import OWN, OnVirtual, VirtualSettings, own_set
from fedstill.bundle import Bundle
from fedstill.contract import CLAUSES, check_algorithm, tiny_sites, tiny_world
from fedstill.data.shard import Shard
from fedstill.engines.local import LocalEngine
from fedstill.engines.memory import Memory
from fedstill.errors import InputError, RunError
from fedstill.experiment import Experiment
from fedstill.privacy import Sampling, epsilon_of, noise_for
from fedstill.rounds import Desk, Reply, rounds
from fedstill.run import drive
from fedstill.seeds import Seed

pytest.importorskip("opacus")

WORLD = tiny_world()
DESK = Desk(Seed.root(0))
LOCAL = {"epochs": 2, "lr": 0.05, "batch": 4}
BUDGET = {"start": "noise", "privacy_epsilon": 8.0, "privacy_clip": 1.0, "privacy_delta": 1e-3}
PRIVATE = VirtualSettings(ipc=3, steps=2, real_batch=4, **BUDGET)
MOVING = {"match_steps": 3, "distill_steps": 2, "global_ipc": 2}


def on_virtual(method=FedAvg, settings=PRIVATE):
    return OnVirtual(inner=method(world=WORLD, **LOCAL), virtual=settings, world=WORLD)


def fedlgd(selected=(1, 3), lasting=2, **options):
    settings = replace(PRIVATE, privacy_rounds=lasting)
    return FedLGD(world=WORLD, **LOCAL, **{**MOVING, "virtual": settings, "selected": selected, **options})


def run(algorithm, until=3, sites=None, memory=None, **more):
    engine = LocalEngine(algorithm, sites or tiny_sites(), DESK, memory or Memory())
    return list(rounds(algorithm, engine, desk=DESK, until=until, **more))


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def rate(site):
    """Of the class of which most is looked at: the one with the fewest images."""
    return max(Sampling(count, 4).rate for count in site.train.histogram() if count)


# --- what is spent ----------------------------------------------------------------------------------------------------


def test_a_set_that_is_made_once_is_paid_once():
    for done in run(on_virtual()):
        for client, site in tiny_sites().items():
            noise = noise_for(8.0, rate=rate(site), steps=2, delta=1e-3)
            epsilon = epsilon_of(noise=noise, rate=rate(site), steps=2, delta=1e-3)
            assert done.figures["clients"][client]["privacy"] == {"epsilon": epsilon, "delta": 1e-3, "noise": noise}
            assert 0.99 * 8 < epsilon <= 8


def test_fedlgd_pays_in_selected_rounds_and_leaves_its_images_in_one_too_many():
    memory, second, third = Memory(), Memory(), Memory()
    run(fedlgd(selected=(1, 3, 4)), until=2, memory=second)
    run(fedlgd(selected=(1, 3, 4)), until=3, memory=third)
    done = run(fedlgd(selected=(1, 3, 4)), until=5, memory=memory)
    for client, site in tiny_sites().items():
        noise = noise_for(8.0, rate=rate(site), steps=2 + 2 * 3, delta=1e-3)
        for number, looks in enumerate((5, 5, 8, 8, 8), 1):
            epsilon = epsilon_of(noise=noise, rate=rate(site), steps=looks, delta=1e-3)
            told = done[number - 1].figures["clients"][client]["privacy"]
            assert told == {"epsilon": epsilon, "delta": 1e-3, "noise": noise}
        kept = [at.read(client, 99).groups[OWN]["images"] for at in (second, third, memory)]
        assert not torch.equal(kept[0], kept[1])
        assert torch.equal(kept[1], kept[2])
    # what looks at no image goes on
    assert all(each.aggregated and not each.failures for each in done)


def test_a_client_that_comes_late_pays_for_its_set_then():
    rare = run(fedlgd(selected=(1,), lasting=1), until=6, cohort=1)
    for done in rare:
        for client, line in done.figures["clients"].items():
            its, noise = rate(tiny_sites()[client]), line["privacy"]["noise"]
            looks = 5 if (done.number == 1 or client in rare[0].cohort) else 2
            assert line["privacy"]["epsilon"] == epsilon_of(noise=noise, rate=its, steps=looks, delta=1e-3)


def test_the_images_are_those_of_the_noise_that_is_told():
    """One step of matching, by hand: what the client holds afterwards is the mechanism's answer and nothing else."""
    site = tiny_sites()["c00"]
    settings = replace(PRIVATE, steps=1, augmentation="none")
    made = own_set(settings, site.train, Bundle(), WORLD, DESK)
    start = own_set(replace(settings, steps=0), site.train, Bundle(), WORLD, DESK)
    seed = DESK.lasting.at("virtual")
    spent = settings.allowed(site.train, steps=1)
    from fedstill.distill.distribution import FreshNetworks

    matcher = settings.matcher(FreshNetworks(WORLD.architecture), site.train, spent, device="cpu")
    assert matcher.noise is not None
    assert matcher.noise.multiplier == spent.noise
    assert matcher.noise.clip == 1.0
    pull = matcher.pull(start.inputs(), start.labels, 0.0, seed.at("match", "step", 0))
    found = start.inputs() - settings.lr * pull.d_images
    assert torch.allclose(made.inputs(), found, atol=1e-5)


def test_the_start_knows_nothing_of_the_images():
    """Other images of the same classes and numbers, the same start."""
    real = tiny_sites()["c00"].train
    other = replace(real, images=1 - real.images)
    begun = replace(PRIVATE, steps=0)
    assert torch.equal(
        own_set(begun, real, Bundle(), WORLD, DESK).images, own_set(begun, other, Bundle(), WORLD, DESK).images
    )


def test_without_a_budget_nothing_changes():
    plain = VirtualSettings(ipc=3, steps=2, start="noise", real_batch=4)
    (one,), (other,) = (run(on_virtual(settings=each), until=1) for each in (plain, replace(plain, privacy_delta=0.1)))
    assert same(one.state.groups["model"], other.state.groups["model"])
    assert "privacy" not in one.figures["clients"]["c00"]


def test_no_loss_on_real_images_is_sent():
    algorithm = fedlgd()
    state = algorithm.init(["c00"], DESK)
    inbox = algorithm.broadcast(state.put({"round": 1}), "c00")
    reply, memory = algorithm.local(inbox, tiny_sites()["c00"], Bundle(), DESK)
    assert set(reply.numbers) == {"examples", "loss", "epsilon", "delta", "noise"}  # the loss is of virtual images
    assert memory.numbers["private_steps"] == 5


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"epsilon": None}, "does not say how private it is"),
        ({"noise": 0.0}, "does not say how private it is"),
        ({"epsilon": 8.1}, "it spent epsilon = 8.1 at delta = 0.001, which is beyond virtual.privacy_epsilon = 8"),
        ({"delta": 0.5}, "beyond virtual.privacy_epsilon = 8 at virtual.privacy_delta = 0.001"),
    ],
    ids=str,
)
@pytest.mark.parametrize("algorithm", [on_virtual(), fedlgd()], ids=["FedAvg on virtual images", "FedLGD"])
def test_what_a_stranger_says_of_its_privacy_is_checked(algorithm, numbers, words):
    state = algorithm.init(["a", "b"], DESK).put({"round": 1})
    site, inbox = tiny_sites()["c00"], algorithm.broadcast(state, "a")
    good, _ = algorithm.local(inbox, site, Bundle(), DESK)
    told = {name: value for name, value in {**good.numbers, **numbers}.items() if value is not None}
    bad = Bundle(good.groups, told)
    outcome = algorithm.aggregate(state, [Reply("a", good), Reply("b", bad)], DESK)
    assert [failure.client for failure in outcome.failures] == ["b"]
    assert words in outcome.failures[0].reason
    assert list(outcome.figures["clients"]) == ["a"]


@pytest.mark.parametrize(
    ("virtual", "sentence"),
    [
        ({"privacy_clip": None}, "virtual.privacy_epsilon = 8: noise is in units of the clipping norm of features"),
        ({"start": "statistics"}, "virtual.start = 'statistics': images that start from real ones"),
        ({"start": "real"}, "virtual.start = 'real': images that start from real ones"),
        ({"missing": "overall"}, "virtual.missing = 'overall': those images have statistics of the real ones"),
        ({"steps": 0}, "with virtual.steps = 0 nothing looks at the images"),
        ({"privacy_epsilon": None}, "virtual.privacy_clip = 1: there is no budget; set virtual.privacy_epsilon"),
        ({"privacy_rounds": 3}, "virtual.privacy_rounds = 3: virtual images stay as they were made"),
    ],
    ids=str,
)
def test_a_budget_that_cannot_hold_is_refused_before_a_client_works(virtual, sentence):
    with pytest.raises(InputError) as caught:
        on_virtual(settings=replace(PRIVATE, **virtual)).init(["c00"], DESK)
    assert sentence in str(caught.value)


def test_fedlgd_says_how_long_its_budget_lasts():
    with pytest.raises(InputError, match=r"say in virtual\.privacy_rounds how many selected rounds"):
        fedlgd(lasting=None).init(["c00"], DESK)
    fedlgd(lasting=None, match_steps=0).init(["c00"], DESK)
    fedlgd(lasting=None, selected=()).init(["c00"], DESK)


def test_a_budget_of_images_that_nobody_trains_on_is_refused():
    asked = tiny.experiment(tiny.FEDAVG, virtual=VIRTUAL | {"use": False})
    with pytest.raises(
        InputError, match=r"virtual\.privacy_epsilon = 8: with virtual\.use = false clients train on their real"
    ):
        asked.build()


def test_a_set_that_was_made_without_the_noise_is_not_taken_for_one_with_it(tmp_path):
    """A visit that was interrupted leaves its set in ``scratch``; another experiment's is none of this one's."""
    site, desk = tiny_sites()["c00"], replace(DESK, scratch=tmp_path)
    plain = own_set(VirtualSettings(ipc=3, steps=2, start="noise", real_batch=4), site.train, Bundle(), WORLD, desk)
    private = own_set(PRIVATE, site.train, Bundle(), WORLD, desk)
    assert not torch.equal(plain.images, private.images)
    assert torch.equal(private.images, own_set(PRIVATE, site.train, Bundle(), WORLD, desk).images)


def test_a_delta_that_shows_an_image_is_the_clients_failure():
    with pytest.raises(
        RunError, match=r"virtual\.privacy_delta = 0\.5 allows one of the client's \d+ images to be shown"
    ):
        own_set(replace(PRIVATE, privacy_delta=0.5), tiny_sites()["c00"].train, Bundle(), WORLD, DESK)


def test_it_is_told_what_is_covered_and_how_long():
    assert (
        on_virtual()
        .remarks(3)[0]
        .startswith("virtual.privacy_epsilon = 8 covers each single training image of a client")
    )
    covered, beyond = fedlgd(selected=(1, 2, 3)).remarks(3)
    assert "virtual.privacy_epsilon = 8 covers" in covered
    assert beyond.startswith("virtual.privacy_rounds = 2 and 3 rounds are selected")
    assert len(fedlgd().remarks(3)) == 1


def test_a_client_with_one_class_and_few_images_takes_part():
    sites = tiny_sites()
    train = sites["c00"].train
    alone = (train.labels == train.labels[0]).nonzero()[:2, 0]
    sites["c00"] = replace(sites["c00"], train=train.take(alone))
    done = run(fedlgd(), until=2, sites=sites)
    assert not any(each.failures for each in done)
    assert isinstance(sites["c00"].train, Shard)


# --- runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_private_methods_keep_the_contract():
    options = {"virtual": replace(PRIVATE, steps=1, privacy_rounds=10), "selected": tuple(range(1, 10))}
    check_algorithm(FedLGD, LOCAL | MOVING | options)
    for method in (FedAvg, MOON):
        broken = [clause for clause, check in CLAUSES.items() if check(on_virtual(method)) is not None]
        assert broken == ["a reply carries its weight"]  # which counts virtual images


VIRTUAL = {"ipc": 1, "steps": 2, **BUDGET}
SMALL = {"name": "fedlgd", "lr": 0.05, "match_steps": 2, "distill_steps": 2, "global_ipc": 1, "selected": [1, 2]}


def test_a_run_goes_on_to_the_same_bits(tmp_path):
    asked = tiny.experiment(SMALL, rounds=2, virtual=VIRTUAL | {"privacy_rounds": 2})
    drive(asked, out=tmp_path / "straight")
    drive(replace(asked, rounds=1), out=tmp_path / "parts")
    drive(asked, out=tmp_path / "parts", resume=True)
    assert tiny.rows(tmp_path / "straight") == tiny.rows(tmp_path / "parts")
    told = [line["privacy"]["epsilon"] for line in tiny.rows(tmp_path / "parts")[-1]["clients"]]
    assert all(0.99 * 8 < each <= 8 for each in told)


def test_settings_that_older_files_do_not_say_are_no_other_experiment():
    asked = tiny.experiment(tiny.FEDAVG, virtual={"ipc": 1, "steps": 1})
    assert not any("virtual.privacy" in key for key in asked.build().identity)
    private = Experiment.from_table({"algorithm": SMALL, "virtual": VIRTUAL | {"privacy_rounds": 2}})
    assert private.settings()["virtual.privacy_epsilon"] == 8.0
