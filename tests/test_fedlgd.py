"""FedLGD: where it is FedAvg, what travels when, its loss, its target, and clients that hold little."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import tiny
from fedstill.algorithms.anchors import Anchors, Contribution
from fedstill.algorithms.averaging import FedAvg
from fedstill.algorithms.fedlgd import GLOBAL, SELECTED, SHARE, FedLGD, Schedule
from fedstill.algorithms.virtual import OWN, OnVirtual, VirtualSettings, kept_set
from fedstill.bundle import Bundle
from fedstill.contract import tiny_sites, tiny_world
from fedstill.cost import estimate
from fedstill.data.shard import Shard
from fedstill.distill.gradient import GradientMatcher
from fedstill.distill.virtual import canvas_of
from fedstill.engines.local import LocalEngine
from fedstill.engines.memory import Memory
from fedstill.errors import InputError
from fedstill.experiment import Experiment, starter
from fedstill.losses import discrepancy, supervised_contrast
from fedstill.rounds import Desk, Reply, rounds
from fedstill.run import drive
from fedstill.seeds import Seed
from fedstill.train import Batch, Recipe, fit

WORLD = tiny_world()
DESK = Desk(Seed.root(0))
VIRTUAL = VirtualSettings(ipc=3, steps=2)
LOCAL = {"epochs": 2, "lr": 0.05, "batch": 4}
FEW = {"match_steps": 2, "distill_steps": 3, "global_ipc": 2, "virtual": VIRTUAL}
NEVER = ()
ALL = 10_000  # images a step: more than anybody holds


def make(**options):
    return FedLGD(world=WORLD, **{**LOCAL, **FEW, **options})


def run(algorithm, sites=None, memory=None, *, until=3, **more):
    engine = LocalEngine(algorithm, sites or tiny_sites(), DESK, memory or Memory())
    return list(rounds(algorithm, engine, desk=DESK, until=until, **more))


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def close(found, wanted, **more):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, **{"rtol": 1e-4, "atol": 1e-6, **more})


# --- where it is FedAvg -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 10.0])
def test_without_selected_rounds_it_is_fedavg_on_the_initial_virtual_data_to_the_bit(weight):
    """λ is then of no use: D^g was never matched."""
    memories = Memory(), Memory()
    plain = OnVirtual(inner=FedAvg(world=WORLD, **LOCAL, momentum=0.0, decay=0.0), virtual=VIRTUAL, world=WORLD)
    lgd, avg = (
        run(algorithm, memory=memory)
        for algorithm, memory in zip((make(selected=NEVER, weight=weight), plain), memories, strict=True)
    )
    for mine, theirs in zip(lgd, avg, strict=True):
        assert same(mine.state.groups["model"], theirs.state.groups["model"])
        assert (mine.bytes_up, mine.bytes_down) == (theirs.bytes_up, theirs.bytes_down)
    assert set(lgd[-1].state.groups) == {"model"}
    for client in tiny_sites():
        assert same(*(memory.read(client, 9).groups[OWN] for memory in memories))


def test_without_a_regulariser_no_weight_matters():
    done = [
        run(make(selected=(1,), **more), until=2)[-1].state.groups["model"]
        for more in ({"weight": 0.0}, {"regulariser": "none", "weight": 3.0}, {"weight": 3.0})
    ]
    assert same(done[0], done[1])
    assert not same(done[0], done[2])


def test_gradients_are_weights_where_clients_take_one_step():
    one = {"epochs": 1, "batch": ALL, "selected": (1, 3)}
    weights, gradients = (run(make(**one, average=average), until=4)[-1].state for average in ("weights", "gradients"))
    close(gradients.groups["model"], weights.groups["model"])
    close(gradients.groups[GLOBAL], weights.groups[GLOBAL], rtol=1e-3, atol=1e-3)


def test_gradients_of_several_steps_are_their_mean():
    algorithm = make(average="gradients", server_lr=0.3, selected=NEVER)
    state = algorithm.init(["c00"], DESK)
    site = tiny_sites()["c00"]
    reply, _ = algorithm.local(algorithm.broadcast(state, "c00"), site, Bundle(), DESK)
    end = make(selected=NEVER).local(algorithm.broadcast(state, "c00"), site, Bundle(), DESK)[0].groups["model"]
    steps = 2 * 3  # 9 images in batches of 4, twice
    start = state.groups["model"]
    close(reply.groups["gradient"], {name: (start[name] - end[name]) / (steps * 0.05) for name in start})
    assert "model" not in reply.groups
    new = algorithm.aggregate(state, [Reply("c00", reply)], DESK).state.groups["model"]
    close(new, {name: start[name] - 0.3 * reply.groups["gradient"][name] for name in start})


@pytest.mark.parametrize("weighting", ["equal", "examples"])
def test_the_mean_is_equal_or_by_real_images(weighting):
    algorithm = make(selected=NEVER, weighting=weighting)
    sites = tiny_sites()
    state = algorithm.init(list(sites), DESK)
    replies = [
        Reply(client, algorithm.local(algorithm.broadcast(state, client), site, Bundle(), DESK.at(client))[0])
        for client, site in sites.items()
    ]
    counts = [1.0 if weighting == "equal" else len(site.train) for site in sites.values()]
    wanted = {
        name: sum(n * reply.bundle.groups["model"][name] for n, reply in zip(counts, replies, strict=True))
        / sum(counts)
        for name in state.groups["model"]
    }
    close(algorithm.aggregate(state, replies, DESK).state.groups["model"], wanted)


# --- rounds -----------------------------------------------------------------------------------------------------------


def test_the_default_schedule_is_the_papers():
    chosen = [number for number in range(1, 101) if number in FedLGD(world=WORLD).selected]
    assert [number - 1 for number in chosen] == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]
    assert not any(number in Schedule(count=0) for number in range(1, 99))
    assert [number for number in range(1, 20) if number in Schedule(count=3, every=2, first=4)] == [4, 6, 8]


@pytest.mark.parametrize("training", ["own", "both"])
def test_what_travels_round_by_round(training):
    algorithm = make(selected=(2, 4), selected_training=training)
    model = sum(4 * tensor.numel() for tensor in algorithm.init(["c"], DESK).groups["model"].values())
    images = 3 * 2 * (8 * 8 * 4 + 8)  # three classes, two each: pixels and a label
    counts, health = 4 * 2 * 8, 4 * 5 * 8  # four clients: examples and loss; how matching went
    down = [4 * model, 4 * (model + 8), 4 * (model + images), 4 * (model + 8), 4 * (model + images)]
    up = [4 * model + counts for _ in down]
    up[1], up[3] = up[1] + health, up[3] + health
    if training == "both":
        down[3] += 4 * images
        up[3] += 4 * model
    done = run(algorithm, until=5)
    assert [each.bytes_down for each in done] == down
    assert [each.bytes_up for each in done] == up


def test_virtual_images_move_in_selected_rounds_and_stay_with_the_client():
    memory, seen = Memory(), []
    algorithm = make(selected=(2,))
    engine = LocalEngine(algorithm, tiny_sites(), DESK, memory)
    seen.extend(
        memory.read("c00", each.number + 1).groups[OWN]["images"]
        for each in rounds(algorithm, engine, desk=DESK, until=3)
    )
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2])
    for number in (1, 2, 3):
        state = algorithm.init(["c00"], DESK).put({"round": number})
        inbox = algorithm.broadcast(state, "c00")
        reply, _ = algorithm.local(inbox, tiny_sites()["c00"], Bundle(), DESK)
        assert set(reply.groups) == {"model"}
        assert (SELECTED in inbox.numbers) == (number == 2)


def test_the_global_set_is_in_the_state_from_its_first_matching_on():
    states = [each.state for each in run(make(selected=(2, 3)), until=4)]
    assert GLOBAL not in states[0].groups
    sets = [state.groups[GLOBAL]["images"] for state in states[1:]]
    assert sets[0].shape == (6, 1, 8, 8)
    assert states[1].groups[GLOBAL]["labels"].tolist() == [0, 0, 1, 1, 2, 2]
    assert not torch.equal(sets[0], sets[1])
    assert torch.equal(sets[1], sets[2])
    assert sets[0].dtype == torch.float32


def test_it_goes_on_from_the_last_set():
    first, second = (
        each.state.groups[GLOBAL]["images"] for each in run(make(selected=(1, 2), distill_lr=1e-6), until=2)
    )
    torch.testing.assert_close(second, first, atol=1e-3, rtol=0)


def test_figures_of_a_selected_round():
    selected, plain = run(make(selected=(1,)), until=2)
    assert selected.figures["matching"]["end"] < selected.figures["matching"]["start"]
    assert selected.figures["seconds"]["distil"] > 0
    assert set(selected.figures["clients"]["c00"]) == {"examples", "loss", "matching"}
    assert selected.figures["clients"]["c00"]["matching"]["retries"] == 0
    assert set(plain.figures) == {"clients"}
    assert set(plain.figures["clients"]["c00"]) == {"examples", "loss"}


def test_it_resumes_in_the_midst_of_tau(tmp_path):
    options = {
        "name": "fedlgd",
        "selected": [1, 3],
        "match_steps": 2,
        "distill_steps": 2,
        "global_ipc": 1,
        "lr": 0.05,
        "anchors": "kept",
    }
    settings = {"virtual": {"ipc": 1, "steps": 1}, "cohort": 2}
    drive(tiny.experiment(options, rounds=4, **settings), out=tmp_path / "straight")
    drive(tiny.experiment(options, rounds=2, **settings), out=tmp_path / "parted")
    drive(tiny.experiment(options, rounds=4, **settings), out=tmp_path / "parted", resume=True)
    assert tiny.result(tmp_path / "parted") == tiny.result(tmp_path / "straight")
    assert (tmp_path / "straight" / "synthetic" / "round-0003" / "global.png").is_file()
    # the fourth round has left it as it was
    assert not (tmp_path / "straight" / "synthetic" / "round-0004").exists()


# --- the target -------------------------------------------------------------------------------------------------------


def distilled_by_hand(algorithm, at, target, desk, first=None):
    """D^g after ``distill_steps`` more from ``first``, else from noise, by the matcher and the canvas alone."""
    network = WORLD.architecture.build(DESK.seed)
    network.load_state_dict(at)
    labels = torch.arange(3).repeat_interleave(2)
    noise = torch.randn(6, 1, 8, 8, generator=desk.seed.at("noise").torch())
    pixels = WORLD.normalisation.undo(noise) if first is None else first
    shard = Shard(pixels, labels, WORLD.classes, WORLD.normalisation)
    canvas = canvas_of(shard, lr=1.0, momentum=0.5, device="cpu")
    matcher = GradientMatcher(network, target)
    for _ in range(algorithm.distill_steps):
        canvas.push(matcher.pull(canvas.render(), canvas.labels, 0.0, DESK.seed))
    return canvas.shard(WORLD.classes).images


@pytest.mark.parametrize("at", ["old", "new"])
def test_the_global_set_is_matched_to_the_mean_pseudo_gradient(at):
    algorithm = make(selected=(1,), match_at=at)
    sites = tiny_sites()
    state = algorithm.init(list(sites), DESK)
    replies = [
        Reply(client, algorithm.local(algorithm.broadcast(state, client), site, Bundle(), DESK.at(client))[0])
        for client, site in sites.items()
    ]
    outcome = algorithm.aggregate(state, replies, DESK)
    start, new = state.groups["model"], outcome.state.groups["model"]
    target = {
        name: sum((start[name] - reply.bundle.groups["model"][name]) / 0.05 for reply in replies) / 4 for name in start
    }
    wanted = distilled_by_hand(algorithm, start if at == "old" else new, target, DESK)
    torch.testing.assert_close(outcome.state.groups[GLOBAL]["images"], wanted, rtol=1e-3, atol=1e-3)


def contribution():
    """The contribution of the first images, trained beside others; and what SGD did in all."""
    sites = tiny_sites()
    own, shared = sites["c00"].train.take(range(7)), sites["c01"].train.take(range(5))
    network = WORLD.architecture.build(Seed.root(3))
    look = Contribution(len(own))
    recipe = Recipe(epochs=2, lr=0.05, batch=5)
    fitted = fit(network, Shard.join([own, shared]), recipe, seed=Seed.root(4), extra=look)
    plain = fit(network, Shard.join([own, shared]), recipe, seed=Seed.root(4))
    return network, own, shared, look, fitted, plain


def test_a_contribution_looks_on_and_is_the_share_of_its_images():
    network, own, shared, mine, fitted, plain = contribution()
    assert same(fitted.tensors, plain.tensors)
    theirs = Contribution(len(shared))
    # the same steps, and the others' share of them: together they are what SGD did
    order = [*range(len(own), len(own) + len(shared)), *range(len(own))]
    places = torch.tensor(order).argsort()

    def other(batch):
        return theirs(replace(batch, rows=places[batch.rows]))

    fit(network, Shard.join([own, shared]), Recipe(epochs=2, lr=0.05, batch=5), seed=Seed.root(4), extra=other)
    for name, start in network.state_dict().items():
        moved = (start - plain.tensors[name]) / 0.05
        torch.testing.assert_close(mine.total[name] + theirs.total[name], moved, rtol=1e-3, atol=1e-4)
        assert mine.total[name].abs().max() > 0


def test_where_the_global_set_is_trained_on_it_is_matched_to_what_others_contributed():
    """A client sends its own images' share of its steps, and that is the target: D^g's own pull is not in it."""
    algorithm = make(selected=(1, 2), selected_training="both", epochs=1, batch=ALL)
    sites = tiny_sites()
    state = run(algorithm, sites, until=1)[-1].state.put({"round": 2})
    inbox = algorithm.broadcast(state, "c00")
    assert GLOBAL in inbox.groups
    reply, memory = algorithm.local(inbox, sites["c00"], Bundle(), DESK)
    own = kept_set(memory, WORLD)
    network = algorithm.models(state)["global"].module()
    loss = F.cross_entropy(network(own.inputs()), own.labels) * len(own) / (len(own) + 6)
    names, parameters = zip(*network.named_parameters(), strict=True)
    close(reply.groups[SHARE], dict(zip(names, torch.autograd.grad(loss, parameters), strict=True)))
    outcome = algorithm.aggregate(state, [Reply("c00", reply)], DESK)
    before = state.groups[GLOBAL]["images"]
    wanted = distilled_by_hand(algorithm, state.groups["model"], reply.groups[SHARE], DESK, before)
    torch.testing.assert_close(outcome.state.groups[GLOBAL]["images"], wanted, rtol=1e-3, atol=1e-3)


def test_a_client_that_leaves_out_or_bends_what_is_due_is_a_failure():
    algorithm = make(selected=(1, 2), selected_training="both")
    sites = tiny_sites()
    state = run(algorithm, sites, until=1)[-1].state.put({"round": 2})
    reply, _ = algorithm.local(algorithm.broadcast(state, "c00"), sites["c00"], Bundle(), DESK)
    bent = {name: tensor[:1] for name, tensor in reply.groups[SHARE].items()}
    replies = [
        Reply("c00", reply),
        Reply("c01", reply.drop(SHARE)),
        Reply("c02", reply.put(**{SHARE: bent})),
        Reply("c03", reply.put({"examples": -1})),
        Reply("c04", reply.drop("model")),
        Reply(
            "c05", Bundle(reply.groups, {"examples": 3.0, "loss": 0.1})
        ),  # says nothing of its matching: that is no fault
    ]
    outcome = algorithm.aggregate(state, replies, DESK)
    assert [failure.client for failure in outcome.failures] == ["c01", "c02", "c03", "c04"]
    assert set(outcome.figures["clients"]) == {"c00", "c05"}
    assert "matching" not in outcome.figures["clients"]["c05"]
    nobody = algorithm.aggregate(state, replies[1:3], DESK)
    assert nobody.state is state


# --- the regulariser --------------------------------------------------------------------------------------------------


def step(rows, network=None):
    """A step on these rows of eight images of a client's own and six that are shared."""
    own, shared = tiny_sites()["c01"].train.take(range(8)), tiny_sites()["c02"].train.take(range(6))
    network = network or WORLD.architecture.build(Seed.root(3))
    shard = Shard.join([own, shared])
    rows = torch.tensor(rows)
    images = shard.inputs(rows)
    features = network.features(images)
    return Batch(network, {}, images, shard.labels[rows], features, network.classify(features), rows, 0), own, shared


def anchors(shared, **options):
    usual = {"kind": "contrast", "features": "exact", "weight": 3.0, "temperature": 0.2, "reduction": "mean"}
    received = WORLD.architecture.build(Seed.root(9)).eval()
    return Anchors(shared=shared, own=8, received=received, **{**usual, **options})


@pytest.mark.parametrize("rows", [[0, 3, 5], [1, 8, 9, 13], [8, 9, 10, 11, 12, 13], [2]], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("features", ["exact", "kept"])
def test_the_contrast_is_over_the_batch_and_the_global_set_each_image_once(rows, reduction, features):
    batch, _, shared = step(rows)
    term = anchors(shared, reduction=reduction, features=features)
    found = term(batch)
    rest = [row for row in range(6) if row + 8 not in rows]
    source = term.received if features == "kept" else batch.network
    others = source.features(shared.inputs(torch.tensor(rest, dtype=torch.long))) if rest else batch.features[:0]
    others = others if features == "exact" else others.detach()
    labels = torch.cat([batch.labels, shared.labels[torch.tensor(rest, dtype=torch.long)]])
    wanted = 3.0 * supervised_contrast(
        torch.cat([batch.features, others]), labels, temperature=0.2, reduction=reduction
    )
    torch.testing.assert_close(found, wanted)
    parameters = list(batch.network.body.parameters())
    for mine, theirs in zip(
        *(torch.autograd.grad(loss, parameters, retain_graph=True) for loss in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_kept_features_are_those_of_the_last_batch():
    network = WORLD.architecture.build(Seed.root(3))
    first, _, shared = step([0, 8, 9], network)
    term = anchors(shared, features="kept")
    term(first)
    with torch.no_grad():
        network.body[0].conv.weight.mul_(1.5)
    second, _, _ = step([1, 10], network)
    kept = torch.cat([first.features[1:], term.received.features(shared.inputs(torch.tensor([3, 4, 5])))]).detach()
    wanted = 3.0 * supervised_contrast(
        torch.cat([second.features, kept]),
        torch.cat([second.labels, shared.labels[[0, 1, 3, 4, 5]]]),
        temperature=0.2,
    )
    torch.testing.assert_close(term(second), wanted)


def test_the_discrepancy_is_between_the_batchs_own_and_the_global_images():
    batch, _, shared = step([0, 3, 9])
    found = anchors(shared, kind="mmd")(batch)
    own, theirs = batch.features[:2], batch.network.features(shared.inputs(torch.tensor([0, 2, 3, 4, 5])))
    torch.testing.assert_close(found, 3.0 * discrepancy(own, torch.cat([batch.features[2:], theirs])))
    alone, _, _ = step([9, 10])
    assert anchors(shared, kind="mmd")(alone) == 0


def test_the_regulariser_is_in_the_training():
    kinds = [
        run(make(selected=(1,), **more), until=2)[-1].state.groups["model"]
        for more in (
            {},
            {"reduction": "sum"},
            {"regulariser": "mmd"},
            {"anchors": "kept"},
            {"temperature": 0.5},
        )
    ]
    assert all(not same(one, other) for index, one in enumerate(kinds) for other in kinds[:index])


# --- clients ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["none", "overall"])
def test_clients_that_hold_little_take_part(missing):
    sites = tiny_sites()
    shard = sites["c00"].train
    sites["c00"] = replace(sites["c00"], train=shard.take([0]))
    sites["c01"] = replace(sites["c01"], train=shard.take((shard.labels == 1).nonzero()[:, 0]))
    algorithm = make(selected=(1, 3), selected_training="both", virtual=replace(VIRTUAL, missing=missing, ipc=5))
    for each in run(algorithm, sites, until=4):
        assert not each.failures
        assert each.state.finite()


def test_a_client_that_comes_late_takes_part():
    memory = Memory()
    done = run(make(selected=(1, 3)), memory=memory, until=6, cohort=2)
    assert not any(each.failures for each in done)
    assert set(memory.listing()) == {client for each in done for client in each.cohort}


def test_soft_labels_count_for_their_largest_entry():
    sites = {
        name: replace(site, train=replace(site.train, labels=F.one_hot(site.train.labels, 3).float()))
        for name, site in tiny_sites().items()
    }
    hard, soft = (run(make(selected=(1,)), each, until=2)[-1].state for each in (tiny_sites(), sites))
    assert same(hard.groups["model"], soft.groups["model"])


def test_batch_norm_is_refused():
    """The clients' gradients hold its batch statistics, and random networks have none to normalise by."""
    architecture = replace(WORLD.architecture, options={"depth": 2, "width": 4, "norm": "batch"})
    algorithm = replace(make(), world=replace(WORLD, architecture=architecture))
    with pytest.raises(InputError, match=r"'convnet' has BatchNorm.*; use another model\.norm"):
        algorithm.init(["c00"], DESK)


def test_clients_may_count_by_the_size_of_their_virtual_sets():
    """As they do under FedAvg on virtual images: with nothing selected the two agree to the bit."""
    sites = tiny_sites()
    shard = sites["c00"].train
    sites["c00"] = replace(sites["c00"], train=shard.take((shard.labels == 1).nonzero()[:, 0]))
    ours = run(make(selected=(), weighting="own"), sites, until=2)[-1].state
    plain = OnVirtual(inner=FedAvg(world=WORLD, **LOCAL, momentum=0.0, decay=0.0), virtual=VIRTUAL, world=WORLD)
    theirs = run(plain, sites, until=2)[-1].state
    assert same(ours.groups["model"], theirs.groups["model"])
    equal = run(make(selected=()), sites, until=2)[-1].state
    assert not same(ours.groups["model"], equal.groups["model"])


# --- in an experiment -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("training", ["own", "both"])
def test_a_dry_run_counts_the_bytes_of_each_round(training, tmp_path):
    options = {"name": "fedlgd", "selected": [2, 4], "global_ipc": 1, "match_steps": 2, "distill_steps": 2}
    virtual = {"ipc": 1, "steps": 2}
    experiment = tiny.experiment({**options, "selected_training": training}, rounds=5, virtual=virtual)
    cost = estimate(experiment)
    drive(experiment, out=tmp_path)
    rows = tiny.rows(tmp_path)
    assert [(row["bytes_down"], row["bytes_up"]) for row in rows] == list(cost.traffic)
    assert len(set(cost.traffic)) > 2
    assert set(cost.seconds) >= {"clients", "server", "distil"}


@pytest.mark.slow
def test_a_dry_run_takes_no_whole_distillation():
    options = {"name": "fedlgd", "global_ipc": 1, "match_steps": 10**6, "distill_steps": 10**6}
    cost = estimate(tiny.experiment(options, rounds=2, virtual={"ipc": 1, "steps": 10**6}))
    assert cost.seconds_once["virtual"] > 100
    assert cost.seconds["distil"] > 100
    assert cost.seconds["clients"] > 100
    assert cost.total_seconds > cost.seconds_once["virtual"]


def test_the_starter_writes_the_virtual_table_and_the_schedule():
    text = starter("fedlgd").to_toml()
    assert "[virtual]" in text
    assert "\nselected = {count = 2, every = 5, first = 1}" in text
    assert starter("fedlgd").virtual.steps == 50
    assert Experiment.from_table({"algorithm": {"name": "fedlgd"}}).algorithm.options.selected == Schedule()
    given = {"name": "fedlgd", "selected": [1, 6]}
    assert Experiment.from_table({"algorithm": given}).algorithm.options.selected == (1, 6)
    assert Experiment.from_table({"algorithm": {**given, "selected": []}}).algorithm.options.selected == ()
    twice = Experiment.from_table({"algorithm": {**given, "selected": [6, 1, 6]}}).algorithm.options.selected
    assert twice == (1, 6)
    rule = Experiment.from_table({"algorithm": {**given, "selected": {"count": 3}}}).algorithm.options.selected
    assert rule == Schedule(count=3)


def test_selected_rounds_beyond_the_run_are_remarked():
    assert make(selected=(1, 9)).remarks(9) == ()
    assert make(selected=(1, 9)).remarks(4) == ("1 of 2 selected rounds lie beyond the run's 4; the last is round 9",)
    assert make(selected=Schedule(count=3, every=5)).remarks(7)[0].startswith("1 of 3 ")
    assert make(selected=()).remarks(3) == ()


def test_a_server_step_on_averaged_weights_is_refused():
    with pytest.raises(InputError, match=r"algorithm\.server_lr = 0\.5: averaged weights take no step"):
        make(server_lr=0.5).init(["c00"], DESK)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"selected": 3}, "algorithm.selected = 3: must be"),
        ({"selected": [0]}, "algorithm.selected[0] = 0: must be at least 1"),
        ({"selected": {"cuont": 3}}, "algorithm.selected.cuont"),
        ({"regulariser": "mdm"}, "did you mean 'mmd'?"),
        ({"virtual": {}}, "algorithm.virtual: no such key"),
        ({"weight": -1}, "algorithm.weight = -1: must be at least 0"),
    ],
    ids=str,
)
def test_wrong_options_are_answered_in_one_sentence(options, sentence):
    with pytest.raises(InputError) as caught:
        tiny.experiment({"name": "fedlgd", **options})
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
