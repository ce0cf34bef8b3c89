"""Virtual images of a client's own: where they begin, what they depend on, and any method on top of them."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import tiny
from fedstill.algorithms import ALGORITHMS
from fedstill.algorithms.averaging import FedAvg
from fedstill.algorithms.contrast import MOON, FedProto
from fedstill.algorithms.scaffold import Scaffold
from fedstill.algorithms.vhl import VHL
from fedstill.algorithms.virtual import OWN, OnVirtual, VirtualSettings, kept_set, own_set
from fedstill.bundle import Bundle
from fedstill.contract import CLAUSES, tiny_sites, tiny_world
from fedstill.data.shard import Shard
from fedstill.distill.virtual import begin, canvas_of
from fedstill.engines.local import LocalEngine
from fedstill.engines.memory import Memory
from fedstill.errors import InputError
from fedstill.experiment import Experiment
from fedstill.folder import METRICS
from fedstill.rounds import Desk, rounds
from fedstill.run import drive
from fedstill.seeds import Seed
from fedstill.tables import resolve

WORLD = tiny_world()
DESK = Desk(Seed.root(0))
FEW = VirtualSettings(ipc=3, steps=2)
LOCAL = {"epochs": 2, "lr": 0.05, "batch": 4}
TABLE = {"ipc": 2, "steps": 2}


def on_virtual(method=FedAvg, settings=FEW, **options):
    return OnVirtual(inner=method(world=WORLD, **LOCAL, **options), virtual=settings, world=WORLD)


def run(algorithm, sites=None, memory=None, *, seed=0, until=2, **more):
    desk = Desk(Seed.root(seed))
    engine = LocalEngine(algorithm, sites or tiny_sites(), desk, memory or Memory())
    return list(rounds(algorithm, engine, desk=desk, until=until, **more))


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def sets_of(memory, number=99):
    return {client: memory.read(client, number).groups[OWN] for client in tiny_sites()}


def only(shard, *labels):
    held = torch.tensor([label in labels for label in shard.labels.tolist()])
    return shard.take(held.nonzero()[:, 0])


# --- the start --------------------------------------------------------------------------------------------------------


def colours():
    """Two classes of two channels with their own means and deviations; the third has no image."""
    noise = torch.randn(300, 2, 8, 8, generator=Seed.root(1).torch())
    labels = torch.arange(300) % 2
    mean = torch.tensor([[0.2, 0.8], [0.6, 0.4]])[labels].view(-1, 2, 1, 1)
    deviation = torch.tensor([[0.01, 0.05], [0.1, 0.02]])[labels].view(-1, 2, 1, 1)
    return replace(tiny_sites()["c00"].train, images=mean + deviation * noise, labels=labels)


def two_channels(shard):
    return replace(shard, normalisation=type(shard.normalisation)((0.5, 0.4), (0.25, 0.2)))


def test_class_statistics_are_of_the_classs_own_pixels():
    real = two_channels(colours())
    start = begin(real, ipc=40, start="statistics", missing="none", seed=DESK.seed)
    assert start.histogram() == [40, 40, 0]
    for k, (means, deviations) in enumerate([((0.2, 0.8), (0.01, 0.05)), ((0.6, 0.4), (0.1, 0.02))]):
        pixels = only(start, k).images
        torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.tensor(means), atol=0.01, rtol=0)
        torch.testing.assert_close(pixels.std((0, 2, 3)), torch.tensor(deviations), atol=0, rtol=0.05)


def test_a_rare_class_has_the_statistics_of_a_common_one():
    """The released code divides by all of a client's pixels; a class of few images is then nearly black."""
    real = two_channels(colours())
    rows = [*range(0, 300, 2), 1, 3]  # all of class 0, two images of class 1
    start = begin(real.take(rows), ipc=40, start="statistics", missing="none", seed=DESK.seed)
    torch.testing.assert_close(only(start, 1).images.mean((0, 2, 3)), torch.tensor((0.6, 0.4)), atol=0.03, rtol=0)


@pytest.mark.parametrize("kind", ["statistics", "noise", "real"])
@pytest.mark.parametrize("missing", ["none", "overall"])
def test_classes_may_be_missing_and_hold_one_image(kind, missing):
    real = tiny_sites()["c01"].train
    one = only(real, 1).take([0])
    start = begin(one, ipc=3, start=kind, missing=missing, seed=DESK.seed)
    assert start.histogram() == ([3, 3, 3] if missing == "overall" else [0, 3, 0])
    assert torch.isfinite(start.images).all()
    if kind == "real":
        pixels = only(start, 1).images
        torch.testing.assert_close(pixels, (one.images.float() / 255).expand(3, -1, -1, -1))


def test_a_class_does_not_depend_on_which_others_there_are():
    real = tiny_sites()["c00"].train
    whole, part = (
        begin(shard, ipc=2, start="statistics", missing="none", seed=DESK.seed) for shard in (real, only(real, 0, 2))
    )
    torch.testing.assert_close(only(whole, 2).images, only(part, 2).images)


def test_soft_labels_count_for_their_largest_entry():
    real = tiny_sites()["c00"].train
    soft = replace(real, labels=F.one_hot(real.labels, 3).float())
    first, second = (begin(each, ipc=2, start="statistics", missing="none", seed=DESK.seed) for each in (real, soft))
    assert torch.equal(first.images, second.images)


def test_a_canvas_holds_the_images():
    images = begin(tiny_sites()["c00"].train, ipc=2, start="real", missing="none", seed=DESK.seed)
    back = canvas_of(images, lr=1.0, momentum=0.5, device="cpu").shard(WORLD.classes)
    torch.testing.assert_close(back.images, images.images)
    assert torch.equal(back.labels, images.labels)


# --- the set ----------------------------------------------------------------------------------------------------------


def test_no_steps_is_the_start_and_steps_move_it():
    site = tiny_sites()["c00"]
    still, moved = (own_set(replace(FEW, steps=steps), site.train, Bundle(), WORLD, DESK) for steps in (0, 2))
    start = begin(site.train, ipc=3, start="statistics", missing="none", seed=DESK.seed.at("virtual", "start"))
    assert torch.equal(still.images, start.images)
    assert not torch.allclose(moved.images, start.images, atol=1e-3)


def test_a_class_that_the_client_lacks_is_not_matched():
    real = only(tiny_sites()["c00"].train, 0, 2)
    settings = replace(FEW, missing="overall")
    still, moved = (own_set(replace(settings, steps=steps), real, Bundle(), WORLD, DESK) for steps in (0, 2))
    assert torch.allclose(only(still, 1).images, only(moved, 1).images, atol=1e-5)
    assert not torch.allclose(only(still, 0).images, only(moved, 0).images, atol=1e-3)


def test_matching_brings_the_means_nearer():
    from fedstill.distill.distribution import DistributionMatcher, FreshNetworks

    real = tiny_sites(images=60)["c00"].train
    matcher = DistributionMatcher(FreshNetworks(WORLD.architecture), real)
    losses = []
    for steps in (0, 60):
        made = own_set(replace(FEW, start="noise", steps=steps), real, Bundle(), WORLD, DESK)
        losses.append(matcher.loss(made.inputs(), made.labels, 0.0, DESK.seed.at("probe")))
    assert losses[1] < 0.7 * losses[0]


def test_convnets_may_be_matched_in_whatever_the_run_trains():
    options = {"depth": 2, "width": 4, "norm": "none"}
    world = replace(WORLD, architecture=replace(WORLD.architecture, options=options))
    real = tiny_sites()["c00"].train
    first, second = (
        own_set(replace(FEW, networks=networks), real, Bundle(), world, DESK) for networks in ("random", "convnet")
    )
    assert not torch.equal(first.images, second.images)


# --- any method on top of it ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", [FedAvg, Scaffold, FedProto, VHL], ids=lambda method: method.__name__)
def test_every_clause_of_the_contract_but_the_weight_holds(method):
    """A client's weight counts virtual images; the contract's counts real ones."""
    options = {"virtual_ipc": 3, "virtual_batch": 4} if method is VHL else {}
    algorithm = on_virtual(method, replace(FEW, steps=1), **options)
    broken = {clause: why for clause, check in CLAUSES.items() if (why := check(algorithm)) is not None}
    assert list(broken) == ["a reply carries its weight"]


def test_all_methods_see_the_same_sets_in_whatever_round_they_begin():
    held = []
    for algorithm, more in (
        (on_virtual(), {}),
        (on_virtual(Scaffold), {"until": 3}),
        (on_virtual(MOON), {"until": 6, "cohort": 2}),
    ):
        memory = Memory()
        run(algorithm, memory=memory, **more)
        held.append(sets_of(memory))
    for other in held[1:]:
        assert all(same(other[client], held[0][client]) for client in held[0])


def test_another_seed_and_another_client_have_other_sets():
    memories = Memory(), Memory()
    for seed, memory in enumerate(memories):
        run(on_virtual(), memory=memory, seed=seed, until=1)
    first, second = map(sets_of, memories)
    assert not torch.equal(first["c00"]["images"], second["c00"]["images"])
    assert not torch.equal(first["c00"]["images"], first["c03"]["images"])


def test_the_set_is_made_once_and_kept():
    memory = Memory()
    run(on_virtual(), memory=memory, until=1)
    before = sets_of(memory)
    run(on_virtual(), memory=memory, until=3)
    assert all(same(before[client], after) for client, after in sets_of(memory).items())


def test_the_method_trains_on_the_kept_images_and_no_others():
    memory = Memory()
    done = run(on_virtual(), memory=memory, until=1)
    made = {
        client: replace(site, train=kept_set(memory.read(client, 2), WORLD)) for client, site in tiny_sites().items()
    }
    assert same(
        run(FedAvg(world=WORLD, **LOCAL), made, until=1)[-1].state.groups["model"], done[-1].state.groups["model"]
    )


def test_what_travels_is_the_methods_own():
    plain, virtual = run(FedAvg(world=WORLD, **LOCAL)), run(on_virtual())
    assert [each.bytes_up for each in virtual] == [each.bytes_up for each in plain]
    assert [each.bytes_down for each in virtual] == [each.bytes_down for each in plain]
    state = on_virtual().init(["c00"], DESK)
    inbox = on_virtual().broadcast(state, "c00")
    reply, memory = on_virtual().local(inbox, tiny_sites()["c00"], Bundle(), DESK)
    assert set(reply.groups) == {"model"}
    assert set(memory.groups) == {OWN}


def test_the_methods_own_memory_is_kept_apart():
    memory = Memory()
    run(on_virtual(MOON), memory=memory)
    assert set(memory.read("c00", 9).groups) == {OWN, "model:previous"}


def test_clients_that_hold_little_take_part():
    sites = tiny_sites()
    shard = sites["c00"].train
    sites["c00"] = replace(sites["c00"], train=shard.take([0]))
    sites["c01"] = replace(sites["c01"], train=only(shard, 1))
    for settings in (FEW, replace(FEW, missing="overall"), replace(FEW, start="real")):
        for each in run(on_virtual(settings=settings), sites):
            assert not each.failures
            assert each.state.finite()


def test_a_client_without_an_image_is_a_failure_in_one_sentence():
    sites = tiny_sites()
    sites["c01"] = replace(sites["c01"], train=sites["c01"].train.take([]))
    done = run(on_virtual(), sites)
    assert [(failure.client, failure.reason) for failure in done[0].failures] == [
        ("c01", "the client has no training image")
    ]
    assert done[-1].aggregated


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("name", [name for name, entry in ALGORITHMS.items() if not entry.own_images])
def test_every_method_that_takes_virtual_images_trains_on_them(name, labels):
    """Of real ones with hard or soft labels; the server's counts (FedNova's steps) are of virtual images."""
    entry = ALGORITHMS[name]
    factory = resolve({name: entry.factory}, name, "algorithm.name")
    options = {"vhl": {"virtual_ipc": 3, "virtual_batch": 4}, "fedlgd": {"selected": (1,), "distill_steps": 1}}
    algorithm = factory(world=WORLD, **LOCAL, **options.get(name, {}))
    if name == "fedlgd":
        algorithm = replace(algorithm, virtual=FEW, match_steps=1, global_ipc=1)
    else:
        algorithm = OnVirtual(inner=algorithm, virtual=FEW, world=WORLD)
    sites = tiny_sites()
    if labels == "soft":
        sites = {
            client: replace(site, train=replace(site.train, labels=F.one_hot(site.train.labels, 3).float()))
            for client, site in sites.items()
        }
    first, second = run(algorithm, sites)
    assert not first.failures
    assert not second.failures
    assert not same(first.state.groups["model"], second.state.groups["model"])
    assert second.state.finite()


# --- in an experiment -------------------------------------------------------------------------------------------------


def test_an_experiment_without_the_table_is_as_before():
    experiment = tiny.experiment()
    assert experiment.virtual is None
    assert "[virtual]" not in experiment.to_toml()
    assert isinstance(experiment.build().algorithm, FedAvg)
    assert not any(key.startswith("virtual") for key in experiment.build().identity)


def test_an_experiment_with_it_runs_on_virtual_images():
    parts = tiny.experiment(virtual=TABLE).build()
    assert parts.algorithm.virtual == VirtualSettings(**TABLE)
    assert parts.identity["virtual.steps"] == 2
    off = tiny.experiment(virtual={**TABLE, "use": False}).build()
    assert isinstance(off.algorithm, FedAvg)
    assert off.identity == tiny.experiment().build().identity


def test_the_table_reads_back():
    import tomllib

    experiment = tiny.experiment(virtual=TABLE)
    assert Experiment.from_table(tomllib.loads(experiment.to_toml())) == experiment


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"virtual": {"stepps": 2}}, "virtual.stepps: no such key: did you mean 'steps'?"),
        ({"virtual": {"ipc": 0}}, "virtual.ipc = 0: must be at least 1"),
        ({"virtual": {"start": "zeros"}}, "virtual.start = 'zeros': must be 'statistics', 'noise', 'real' or 'mean'"),
        ({"virtual": 3}, "virtual = 3: must be a table"),
    ],
    ids=str,
)
def test_a_wrong_table_is_answered_in_one_sentence(table, sentence):
    with pytest.raises(InputError) as caught:
        tiny.experiment(**table)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("algorithm", "virtual", "sentence"),
    [
        (tiny.FEDAVG, {"augmentation": "crop_spin"}, "virtual.augmentation = 'spin'"),
        (
            {"name": "centralised"},
            {},
            "virtual: 'centralised' takes no virtual images, for it pools all images on one site",
        ),
        ({"name": "feddm"}, {}, "virtual: 'feddm' takes no virtual images, for its clients distil images of their own"),
        (
            {"name": "feddgm"},
            {},
            "virtual: 'feddgm' takes no virtual images, for its server distils what clients learn",
        ),
        ({"name": "fedlgd"}, {"use": False}, "virtual.use = false: FedLGD's clients train on virtual images"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_before_the_run(algorithm, virtual, sentence):
    with pytest.raises(InputError) as caught:
        tiny.experiment(algorithm, virtual={**TABLE, **virtual}).build()
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_methods_that_refuse_the_table_run_with_it_switched_off():
    for name, entry in ALGORITHMS.items():
        if entry.own_images and name != "prioronly":  # which needs a prior of another size
            tiny.experiment({"name": name}, virtual={**TABLE, "use": False}).build()


def test_a_run_on_virtual_images_resumes_to_the_same_bits(tmp_path):
    straight, parted = tmp_path / "straight", tmp_path / "parted"
    drive(tiny.experiment(virtual=TABLE, cohort=2), out=straight)
    drive(tiny.experiment(virtual=TABLE, cohort=2, rounds=1), out=parted)
    drive(tiny.experiment(virtual=TABLE, cohort=2), out=parted, resume=True)
    assert tiny.result(parted) == tiny.result(straight)
    assert (parted / METRICS).is_file()
    kept = Bundle.open(next((straight / "memory").rglob("*.safetensors"))).groups[OWN]
    shard = Shard(kept["images"], kept["labels"], ("0",) * 10, WORLD.normalisation)
    assert set(shard.histogram()) == {0, 2}
