"""FedProx, FedNova, SCAFFOLD, FedAvgM and FedAdam against their formulas; BatchNorm; replies that cannot be used."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedstill.algorithms.averaging import FedAvg
from fedstill.algorithms.fednova import FedNova, accumulation
from fedstill.algorithms.fedopt import FedAdam, FedAvgM
from fedstill.algorithms.fedprox import FedProx
from fedstill.algorithms.scaffold import Scaffold
from fedstill.bundle import Bundle
from fedstill.contract import check_algorithm, tiny_sites, tiny_world
from fedstill.engines.local import LocalEngine
from fedstill.engines.memory import Memory
from fedstill.errors import InputError
from fedstill.evaluate.scoring import score_clients
from fedstill.rounds import Desk, Failure, Reply, rounds
from fedstill.seeds import Seed

WORLD = tiny_world()
OPTIONS = {**WORLD.architecture.options, "norm": "batch"}
BATCHED = replace(WORLD, architecture=replace(WORLD.architecture, options=OPTIONS))
DESK = Desk(Seed.root(0))
LOCAL = {"epochs": 2, "lr": 0.05, "batch": 8}
FAMILY = [FedAvg, FedProx, FedNova, Scaffold, FedAvgM, FedAdam]
ALL = 10_000  # images a step: more than anybody holds


def states(algorithm, sites=None, memory=None, *, until=1, engine=None, **more):
    engine = engine or LocalEngine(algorithm, sites or tiny_sites(), DESK, memory or Memory())
    return list(rounds(algorithm, engine, desk=DESK, until=until, **more))


def close(found, wanted, **more):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, **{"rtol": 1e-4, "atol": 1e-6, **more})


def moved(state, client, scale, **numbers):
    """A reply whose parameters lie ``scale`` times a drawn direction away from the state's."""
    draws = Seed.root(7).at(client).torch()
    model = {
        name: tensor + scale * torch.randn(tensor.shape, generator=draws) if tensor.is_floating_point() else tensor
        for name, tensor in state.groups["model"].items()
    }
    return Reply(client, Bundle().put({"examples": 1, "loss": 0.0, **numbers}, model=model))


def by_hand(start, site, *, steps, lr, decay=0.0, momentum=0.0, slope=None, mu=0.0):
    """``steps`` of SGD on all of a client's images at once, from the textbook."""
    network = WORLD.architecture.build(Seed.root(99))
    network.load_state_dict(start)
    inputs, labels = site.train.inputs(), site.train.labels
    velocity = {name: torch.zeros_like(tensor) for name, tensor in network.named_parameters()}
    for _ in range(steps):
        network.zero_grad()
        F.cross_entropy(network(inputs), labels).backward()
        with torch.no_grad():
            for name, tensor in network.named_parameters():
                step = tensor.grad + decay * tensor + mu * (tensor - start[name])
                step = step + (0 if slope is None else slope[name])
                velocity[name] = momentum * velocity[name] + step
                tensor -= lr * velocity[name]
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


# --- FedAvg ---------------------------------------------------------------------------------------------------------


def paper_fedavg(start, sites, test, *, rounds_, epochs, lr, batch, seed):
    """McMahan et al., Algorithm 1, with nothing of the package but the network and the pixels; accuracy by round."""
    draw = np.random.default_rng(seed)
    network = WORLD.architecture.build(Seed.root(99))
    w = {name: tensor.clone() for name, tensor in start.items()}
    n = sum(len(site.train) for site in sites.values())
    curve = []
    for _ in range(rounds_):
        total = {name: torch.zeros_like(tensor) for name, tensor in w.items()}
        for site in sites.values():
            network.load_state_dict(w)
            for _ in range(epochs):
                order = draw.permutation(len(site.train))
                for rows in np.split(order, range(batch, len(order), batch)):
                    loss = F.cross_entropy(network(site.train.inputs(torch.from_numpy(rows))), site.train.labels[rows])
                    network.zero_grad()
                    loss.backward()
                    with torch.no_grad():
                        for tensor in network.parameters():
                            tensor -= lr * tensor.grad
            for name, tensor in network.state_dict().items():
                total[name] += len(site.train) / n * tensor
        w = total
        network.load_state_dict(w)
        with torch.no_grad():
            curve.append((network(test[0]).argmax(1) == test[1]).double().mean().item())
    return w, curve


def curve_of(algorithm, seed, sites, test, until):
    desk = Desk(Seed.root(seed))
    done = rounds(algorithm, LocalEngine(algorithm, sites, desk), desk=desk, until=until)
    networks = [algorithm.models(each.state)["global"].module().eval() for each in done]
    with torch.no_grad():
        return [(network(test[0]).argmax(1) == test[1]).double().mean().item() for network in networks]


def lacking(site, label):
    """The same client without one class."""
    kept = [row for row, held in enumerate(site.train.labels.tolist()) if held != label]
    return replace(site, train=site.train.take(kept))


def test_fedavgs_curve_is_that_of_the_papers_pseudo_code():
    """Three seeds, the same start in both, other orders of batches; each client lacks a class."""
    sites = {name: lacking(site, k % 3) for k, (name, site) in enumerate(tiny_sites(images=30).items())}
    held = [site.train for site in tiny_sites(clients=12, images=90).values()]
    test = torch.cat([shard.inputs() for shard in held]), torch.cat([shard.labels for shard in held])
    algorithm = FedAvg(world=WORLD, epochs=1, lr=0.02, batch=6, momentum=0.0, decay=0.0)
    ours, theirs = [], []
    for seed in (0, 1, 2):
        start = algorithm.init(list(sites), Desk(Seed.root(seed)).at("init")).groups["model"]
        ours.append(curve_of(algorithm, seed, sites, test, 6))
        theirs.append(paper_fedavg(start, sites, test, rounds_=6, epochs=1, lr=0.02, batch=6, seed=seed)[1])
    ours, theirs = np.array(ours), np.array(theirs)
    assert ours[:, -1].mean() > ours[:, 0].mean() + 0.3  # there is a curve to compare
    noise = np.sqrt((ours.var(0, ddof=1) + theirs.var(0, ddof=1)) / 3)
    apart = np.abs(ours.mean(0) - theirs.mean(0))
    assert (apart <= noise + 1e-3).all(), (ours, theirs)
    assert (apart <= 0.05).all(), (ours, theirs)  # the start is the same, and most of the noise is its


def test_fedavg_without_chance_is_the_papers_pseudo_code():
    """All images a step: nothing is drawn, and the weights are those of the pseudo-code."""
    algorithm, sites = FedAvg(world=WORLD, epochs=2, lr=0.1, batch=ALL, momentum=0.0, decay=0.0), tiny_sites()
    start = algorithm.init(list(sites), DESK.at("init")).groups["model"]
    images = sites["c00"].test
    test = images.inputs(), images.labels
    wanted, _ = paper_fedavg(start, sites, test, rounds_=3, epochs=2, lr=0.1, batch=ALL, seed=0)
    close(states(algorithm, sites, until=3)[-1].state.groups["model"], wanted)


# --- FedProx --------------------------------------------------------------------------------------------------------


def test_fedprox_pulls_back_to_what_arrived():
    sites = {"c00": tiny_sites()["c00"]}
    algorithm = FedProx(world=WORLD, mu=3.0, epochs=4, lr=0.05, batch=ALL, momentum=0.9, decay=1e-2)
    start = algorithm.init(["c00"], DESK.at("init")).groups["model"]
    wanted = by_hand(start, sites["c00"], steps=4, lr=0.05, momentum=0.9, decay=1e-2, mu=3.0)
    close(states(algorithm, sites)[-1].state.groups["model"], wanted)


# --- FedNova --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_accumulation_is_the_sum_of_the_papers_vector_and_what_sgd_does(rho, steps):
    vector = [(1 - rho**power) / (1 - rho) for power in range(steps, 0, -1)]
    assert accumulation(steps, rho) == pytest.approx(sum(vector))
    w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimiser = torch.optim.SGD([w], lr=0.1, momentum=rho)
    for _ in range(steps):
        w.grad = torch.ones_like(w)
        optimiser.step()
    assert -w.item() / 0.1 == pytest.approx(accumulation(steps, rho))


@pytest.mark.parametrize(("momentum", "rho", "used"), [(0.0, None, 0.0), (0.9, None, 0.9), (0.9, 0.0, 0.0)])
def test_fednova_is_its_formula_with_unequal_steps(momentum, rho, used):
    algorithm = FedNova(world=WORLD, momentum=momentum, rho=rho, epochs=3, batch=20)
    state = algorithm.init(["a", "b", "c"], DESK)
    held = {"a": (10, 3), "b": (30, 6), "c": (60, 9)}
    replies = [moved(state, c, 0.1, examples=n, steps=t) for c, (n, t) in held.items()]
    outcome = algorithm.aggregate(state, iter(replies), DESK)
    norms = {c: sum((1 - used**k) / (1 - used) for k in range(1, t + 1)) for c, (_, t) in held.items()}
    tau = sum(n / 100 * norms[c] for c, (n, _) in held.items())
    for name, start in state.groups["model"].items():
        x = start.numpy().astype(np.float64)
        ends = {reply.client: reply.bundle.groups["model"][name].numpy().astype(np.float64) for reply in replies}
        wanted = x - tau * sum(n / 100 * (x - ends[c]) / norms[c] for c, (n, _) in held.items())
        np.testing.assert_allclose(outcome.state.groups["model"][name].numpy(), wanted, rtol=1e-5, atol=1e-6)
    assert not outcome.failures
    assert outcome.figures["clients"]["b"]["steps"] == 6
    assert outcome.figures["overshoot"] > 1


@pytest.mark.parametrize("steps", [1, 5, 7, 10**9])
def test_fednova_refuses_steps_that_nobody_can_have_taken(steps):
    """They would move the model for all, through κ."""
    algorithm = FedNova(world=WORLD, epochs=3, batch=20)
    state = algorithm.init(["a", "b"], DESK)
    good, bad = moved(state, "a", 0.1, examples=10, steps=3), moved(state, "b", 0.1, examples=30, steps=steps)
    outcome = algorithm.aggregate(state, [good, bad], DESK)
    assert [failure.client for failure in outcome.failures] == ["b"]
    assert outcome.failures[0].reason == f"its reply says that it took {steps} steps, where 30 examples take 6"
    assert outcome.state.to_bytes() == algorithm.aggregate(state, [good], DESK).state.to_bytes()


def test_fednovas_clients_say_how_many_steps_they_took():
    figures = states(FedNova(world=WORLD, epochs=2, batch=7))[0].figures
    assert {name: line["steps"] for name, line in figures["clients"].items()} == {
        "c00": 6, "c01": 6, "c02": 6, "c03": 6,
    }  # fmt: skip
    assert figures["overshoot"] == pytest.approx(1)


# --- SCAFFOLD -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("momentum", "weighting"), [(0.0, "equal"), (0.9, "equal"), (0.0, "examples")])
def test_scaffold_of_two_clients_is_the_papers_loop(momentum, weighting):
    sites = {name: tiny_sites()[name] for name in ("c00", "c03")}
    lr, eta, steps, decay = 0.05, 0.7, 3, 1e-2
    budget = {"epochs": steps, "lr": lr, "batch": ALL, "momentum": momentum, "decay": decay}
    algorithm = Scaffold(world=WORLD, server_lr=eta, weighting=weighting, **budget)
    sizes = [len(site.train) if weighting == "examples" else 1 for site in sites.values()]
    shares = [size / sum(sizes) for size in sizes]
    x = dict(algorithm.init(list(sites), DESK.at("init")).groups["model"])
    c = {name: torch.zeros_like(tensor) for name, tensor in x.items()}
    mine = {client: dict(c) for client in sites}
    gradients = sum((1 - momentum**k) / (1 - momentum) for k in range(1, steps + 1))
    memory = Memory()
    for done in states(algorithm, sites, memory, until=3):
        ends, changes = [], []
        for client, site in sites.items():
            slope = {name: c[name] - mine[client][name] for name in x}
            y = by_hand(x, site, steps=steps, lr=lr, momentum=momentum, decay=decay, slope=slope)
            plus = {name: mine[client][name] - c[name] + (x[name] - y[name]) / (gradients * lr) for name in x}
            changes.append({name: plus[name] - mine[client][name] for name in x})
            ends.append(y)
            mine[client] = plus
        x = {
            name: x[name] + eta * sum(p * (y[name] - x[name]) for p, y in zip(shares, ends, strict=True)) for name in x
        }
        c = {name: c[name] + sum(p * each[name] for p, each in zip(shares, changes, strict=True)) for name in x}
        close(done.state.groups["model"], x, rtol=1e-3, atol=1e-5)
        close(done.state.groups["control"], c, rtol=1e-3, atol=1e-4)
    close(memory.read("c03", 4).groups["control"], mine["c03"], rtol=1e-3, atol=1e-4)


@dataclass(frozen=True)
class Losing:
    """An engine that loses a client's finished work in some rounds: its memory has moved on, its reply never arrives."""

    inner: LocalEngine
    lost: frozenset

    def clients(self):
        return self.inner.clients()

    def work(self, number, outbox, task):
        for answer in self.inner.work(number, outbox, task):
            yield Failure(answer.client, "lost") if (number, answer.client) in self.lost else answer


def known_control(state, memory, client, after):
    """A client's control as far as the server has heard of it."""
    held, accepted = memory.read(client, after + 1), state.numbers.get(f"accepted:{client}", 0)
    if accepted == 0:
        return {name: torch.zeros_like(tensor) for name, tensor in state.groups["control"].items()}
    return held.groups["control" if held.numbers["round"] == accepted else "control:before"]


@pytest.mark.parametrize("cohort", [2, 4])
def test_scaffolds_control_stays_the_mean_whoever_takes_part_and_whatever_is_lost(cohort):
    algorithm, memory = Scaffold(world=WORLD, **LOCAL), Memory()
    lost = frozenset((number, client) for number in (2, 3, 5) for client in ("c01", "c02"))
    engine = Losing(LocalEngine(algorithm, tiny_sites(), DESK, memory), lost)
    met = 0
    for each in rounds(algorithm, engine, desk=DESK, until=6, cohort=cohort, quorum=2):
        met += each.aggregated
        held = [known_control(each.state, memory, client, each.number) for client in engine.clients()]
        for name, tensor in each.state.groups["control"].items():
            mean = torch.stack([control[name].double() for control in held]).mean(0)
            torch.testing.assert_close(tensor.double(), mean, rtol=1e-4, atol=1e-6)
    assert 0 < met <= 6
    assert met < 6 or cohort == 4  # with two asked and one of them lost, the round does not count


def test_a_scaffold_client_that_lost_its_memory_is_told_so():
    algorithm = Scaffold(world=WORLD, **LOCAL)
    first = states(algorithm)[-1].state
    (second,) = states(algorithm, start=1, state=first, until=2)
    assert not second.aggregated
    assert [failure.reason[:67] for failure in second.failures] == [
        "the client's memory does not hold its control of round 1, which the"
    ] * 4


def test_scaffold_sends_twice_what_fedavg_sends():
    """Each way a model and a control of its size, and a few numbers."""
    scaffold, avg = (states(kind(world=WORLD, **LOCAL))[0] for kind in (Scaffold, FedAvg))
    assert scaffold.bytes_up == pytest.approx(2 * avg.bytes_up, rel=0.02)
    assert scaffold.bytes_down == pytest.approx(2 * avg.bytes_down, rel=0.02)


# --- server optimisers ----------------------------------------------------------------------------------------------


def three_rounds(algorithm):
    """States, and the mean step of each round as an independent NumPy array by name."""
    state = algorithm.init(["a", "b"], DESK)
    found = [state]
    steps = []
    for number in range(3):
        replies = [moved(state, f"a{number}", 0.02, examples=10), moved(state, f"b{number}", 0.1, examples=30)]
        weights = (0.25, 0.75)
        steps.append(
            {
                name: sum(
                    weight * (reply.bundle.groups["model"][name].numpy().astype(np.float64) - tensor.numpy())
                    for weight, reply in zip(weights, replies, strict=True)
                )
                for name, tensor in state.groups["model"].items()
            }
        )
        state = algorithm.aggregate(state, iter(replies), DESK).state
        found.append(state)
    return found, steps


def test_fedavgm_is_its_formula():
    found, steps = three_rounds(FedAvgM(world=WORLD, server_momentum=0.8, server_lr=0.5))
    for name in found[0].groups["model"]:
        w, v = found[0].groups["model"][name].numpy().astype(np.float64), 0.0
        for state, step in zip(found[1:], steps, strict=True):
            v = 0.8 * v + step[name]
            w = w + 0.5 * v
            np.testing.assert_allclose(state.groups["model"][name].numpy(), w, rtol=1e-4, atol=1e-6)


def test_fedadam_is_its_formula():
    found, steps = three_rounds(FedAdam(world=WORLD, server_lr=0.1, beta1=0.7, beta2=0.9, tau=0.01))
    for name in found[0].groups["model"]:
        w, m, v = found[0].groups["model"][name].numpy().astype(np.float64), 0.0, 0.01**2
        for state, step in zip(found[1:], steps, strict=True):
            m = 0.7 * m + 0.3 * step[name]
            v = 0.9 * v + 0.1 * step[name] ** 2
            w = w + 0.1 * m / (np.sqrt(v) + 0.01)
            np.testing.assert_allclose(state.groups["model"][name].numpy(), w, rtol=1e-4, atol=1e-5)


# --- replies that cannot be used ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILY)
def test_what_cannot_be_used_is_a_failure_and_no_part_of_the_mean(kind):
    algorithm, sites = kind(world=WORLD, **LOCAL), tiny_sites()
    state = algorithm.init(list(sites), DESK)
    whole = [
        Reply(client, algorithm.local(algorithm.broadcast(state, client), site, Bundle(), DESK)[0])
        for client, site in sites.items()
    ]
    good, *rest = whole
    flat = {name: tensor.flatten() for name, tensor in good.bundle.groups["model"].items()}
    halves = {name: tensor.half() for name, tensor in good.bundle.groups["model"].items()}
    spoilt = [
        replace(rest[0], bundle=rest[0].bundle.put(model=flat)),
        replace(rest[1], bundle=rest[1].bundle.put(model=halves)),
        replace(rest[2], bundle=rest[2].bundle.put({"examples": -18})),
        Reply("c04", Bundle()),
    ]
    outcome = algorithm.aggregate(state, iter([good, *spoilt]), DESK)
    assert [(failure.client, failure.reason) for failure in outcome.failures] == [
        ("c01", "its reply holds no model of the names, shapes and types that were sent"),
        ("c02", "its reply holds no model of the names, shapes and types that were sent"),
        ("c03", "its reply says that it has -18 examples, which is no count"),
        ("c04", "its reply does not say its number of examples"),
    ]
    assert list(outcome.figures["clients"]) == ["c00"]
    assert outcome.state.to_bytes() == algorithm.aggregate(state, iter([good]), DESK).state.to_bytes()


@pytest.mark.parametrize("kind", FAMILY)
def test_a_round_in_which_nothing_can_be_used_leaves_the_state(kind):
    algorithm = kind(world=WORLD, **LOCAL)
    state = states(algorithm)[-1].state
    outcome = algorithm.aggregate(state, iter([Reply("c00", Bundle())]), DESK)
    assert outcome.state.to_bytes() == state.to_bytes()


def test_a_count_beyond_all_counting_is_none():
    algorithm = FedAvg(world=WORLD, **LOCAL)
    state = algorithm.init(["c00"], DESK)
    outcome = algorithm.aggregate(state, iter([moved(state, "c00", 0.1, examples=1e308)]), DESK)
    assert "examples, which is no count" in outcome.failures[0].reason


def test_what_a_method_needs_beyond_the_model_is_looked_at_too():
    for kind, what in ((FedNova, "does not say its number of steps"), (Scaffold, "holds no control of the names")):
        algorithm = kind(world=WORLD, **LOCAL)
        state = algorithm.init(["c00"], DESK)
        outcome = algorithm.aggregate(state, iter([moved(state, "c00", 0.1)]), DESK)
        assert what in outcome.failures[0].reason


# --- BatchNorm and small clients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILY)
def test_running_statistics_are_averaged_and_counters_are_not(kind):
    algorithm, sites = kind(world=BATCHED, **LOCAL), tiny_sites()
    state = algorithm.init(list(sites), DESK)
    replies = [
        Reply(client, algorithm.local(algorithm.broadcast(state, client), site, Bundle(), DESK)[0])
        for client, site in sites.items()
    ]
    weights = torch.tensor([1.0 if kind is Scaffold else len(site.train) for site in sites.values()])
    found = algorithm.aggregate(state, iter(replies), DESK).state.groups["model"]
    for name in ("body.block1.norm.running_mean", "body.block2.norm.running_var"):
        sent = torch.stack([reply.bundle.groups["model"][name] for reply in replies])
        torch.testing.assert_close(found[name], (weights[:, None] * sent).sum(0) / weights.sum())
    counter = "body.block1.norm.num_batches_tracked"
    assert found[counter].dtype == torch.int64
    assert torch.equal(found[counter], replies[0].bundle.groups["model"][counter])


@pytest.mark.parametrize("kind", FAMILY)
def test_local_norms_never_travel_and_clients_score_with_their_own(kind):
    algorithm, memory, sites = kind(world=BATCHED, norms="local", **LOCAL), Memory(), tiny_sites()
    engine = LocalEngine(algorithm, sites, DESK, memory)
    state = states(algorithm, engine=engine, until=2)[-1].state
    assert not [name for group in state.groups.values() for name in group if ".norm." in name]
    assert algorithm.models(state) == {}
    own = {client: memory.read(client, 3).groups["model:norms"] for client in sites}
    assert {name.split(".")[2] for name in own["c00"]} == {"norm"}
    assert len(own["c00"]) == 10
    assert not torch.equal(*(own[c]["body.block1.norm.running_mean"] for c in ("c00", "c01")))
    scores = score_clients(engine, 2, state, list(sites), classes=3)
    assert not scores.failures
    for client, site in sites.items():
        network = BATCHED.architecture.build(Seed.root(5)).eval()
        network.load_state_dict({**state.groups["model"], **own[client]})  # of round 2, not of the one before
        right = (network(site.validation.inputs()).argmax(1) == site.validation.labels).sum().item()
        assert scores.clients[client].correct == right


def test_local_norms_need_norms():
    with pytest.raises(InputError, match=r"'convnet' has no BatchNorm to keep; use algorithm\.norms = 'average'"):
        FedAvg(world=WORLD, norms="local").init(["c00"], DESK)


@pytest.mark.parametrize("norms", ["average", "local"])
@pytest.mark.parametrize("kind", FAMILY)
def test_a_client_with_one_image_takes_part(kind, norms):
    sites = tiny_sites(2)
    sites["c01"] = replace(sites["c01"], train=sites["c01"].train.take([0]))
    algorithm = kind(world=BATCHED, norms=norms, **LOCAL)
    for each in states(algorithm, sites, until=2):
        assert each.failures == ()
        assert each.state.finite()
        assert each.figures["clients"]["c01"]["examples"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("norms", ["average", "local"])
@pytest.mark.parametrize("kind", FAMILY)
def test_the_contract_holds_with_batchnorm(kind, norms):
    check_algorithm(lambda *, world, **options: kind(world=BATCHED, **options), {"epochs": 1, "norms": norms})
