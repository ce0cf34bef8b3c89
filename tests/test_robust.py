"""Rules that withstand hostile clients: their formulas, what they need, and the point of them."""

import itertools
import statistics
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import tiny
from fedstill.algorithms.averaging import FedAvg
from fedstill.algorithms.contrast import MOON, FedProto
from fedstill.algorithms.fedlgd import FedLGD
from fedstill.algorithms.fednova import FedNova
from fedstill.algorithms.fedopt import FedAdam, FedAvgM
from fedstill.algorithms.fedprox import FedProx
from fedstill.algorithms.robust import combine, krum_scores
from fedstill.algorithms.scaffold import Scaffold
from fedstill.algorithms.vhl import VHL
from fedstill.algorithms.virtual import OnVirtual, VirtualSettings
from fedstill.bundle import Bundle
from fedstill.contract import CLAUSES, check_algorithm, tiny_sites, tiny_world
from fedstill.engines.local import LocalEngine
from fedstill.errors import InputError
from fedstill.method import Method
from fedstill.rounds import Desk, Failure, Reply, rounds
from fedstill.run import drive
from fedstill.seeds import Seed

WORLD = tiny_world()
BATCHED = replace(
    WORLD, architecture=replace(WORLD.architecture, options={**WORLD.architecture.options, "norm": "batch"})
)
DESK = Desk(Seed.root(0))
LOCAL = {"epochs": 1, "lr": 0.02, "batch": 6, "momentum": 0.0}
RULES = {"median": None, "trimmed": 1, "krum": 1, "multikrum": 1}
RULED = [FedAvg, FedProx, FedAvgM, FedAdam, MOON, VHL]


def group(*parts):
    return {f"w{place}": torch.as_tensor(part) for place, part in enumerate(parts)}


def drawn(count, seed, *, spread=1.0):
    """Models of a matrix, a vector and a scalar in float32."""
    draws = np.random.default_rng(seed)
    return {
        f"c{k}": group(
            *(torch.from_numpy(draws.normal(scale=spread, size=shape).astype(np.float32)) for shape in ((3, 2), (4,)))
        )
        for k in range(count)
    }


def flat(model):
    return np.concatenate([tensor.numpy().astype(np.float64).ravel() for tensor in model.values()])


# --- the rules against NumPy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 10])
def test_the_median_is_numpys(count):
    models = drawn(count, count)
    found = combine("median", None, models)
    np.testing.assert_allclose(
        flat(found.model), np.median([flat(model) for model in models.values()], axis=0), rtol=1e-6
    )
    assert found.chosen is None
    assert found.model["w0"].dtype == torch.float32


@pytest.mark.parametrize(("count", "hostile"), [(1, 0), (3, 1), (5, 0), (5, 1), (5, 2), (10, 3)])
def test_the_trimmed_mean_leaves_the_ends_out(count, hostile):
    models = drawn(count, count)
    ordered = np.sort([flat(model) for model in models.values()], axis=0)
    wanted = ordered[hostile : count - hostile].mean(0)
    np.testing.assert_allclose(flat(combine("trimmed", hostile, models).model), wanted, rtol=1e-5, atol=1e-7)


def brute(models, hostile):
    """Krum's scores, by trying every set of n − f − 2 others."""
    vectors = [flat(model) for model in models.values()]
    count = len(vectors) - hostile - 2
    return [
        min(
            sum(((vectors[i] - vectors[j]) ** 2).sum() for j in others)
            for others in itertools.combinations([j for j in range(len(vectors)) if j != i], count)
        )
        for i in range(len(vectors))
    ]


@pytest.mark.parametrize(("count", "hostile"), [(3, 0), (5, 1), (6, 1), (7, 2), (8, 0)])
def test_krum_is_its_definition(count, hostile):
    models = drawn(count, 10 * count + hostile)
    scores = brute(models, hostile)
    np.testing.assert_allclose(krum_scores(list(models.values()), hostile).numpy(), scores, rtol=1e-9)
    best = sorted(range(count), key=lambda place: scores[place])
    single, several = (combine(rule, hostile, models) for rule in ("krum", "multikrum"))
    assert single.chosen == (f"c{best[0]}",)
    assert flat(single.model).tolist() == flat(models[f"c{best[0]}"]).tolist()
    assert several.chosen == tuple(f"c{place}" for place in best[: count - hostile])
    wanted = np.mean([flat(models[client]) for client in several.chosen], axis=0)
    np.testing.assert_allclose(flat(several.model), wanted, rtol=1e-5, atol=1e-7)
    assert list(several.scores.values()) == pytest.approx(scores)


def test_krum_sees_small_distances_beside_a_huge_model():
    models = drawn(5, 1, spread=1e-3) | {"c1": group(torch.full((3, 2), 1e25), torch.full((4,), -1e25))}
    assert list(combine("krum", 1, models).scores.values()) == pytest.approx(brute(models, 1), rel=1e-9)


def test_of_equal_scores_the_first_client_is_chosen():
    models = {f"c{k}": group(torch.ones(2)) for k in range(5)}
    assert combine("krum", 1, models).chosen == ("c0",)
    assert combine("multikrum", 1, models).chosen == ("c0", "c1", "c2", "c3")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types_stay(rule, kind):
    models = {f"c{k}": group(torch.full((2,), float(k), dtype=kind)) for k in range(5)}
    assert combine(rule, RULES[rule], models).model["w0"].dtype == kind


@pytest.mark.parametrize(("rule", "wanted"), [("median", 30), ("trimmed", 30), ("krum", 20), ("multikrum", 20)])
def test_integers_are_of_the_middle_or_of_the_best(rule, wanted):
    """The second is Krum's choice; nobody's wild counter is taken."""
    sent = {"a": (1.0, -(2**63)), "b": (1.1, 20), "c": (1.2, 30), "d": (1.5, 40), "e": (9.0, 2**62)}
    models = {client: group(torch.tensor([value]), torch.tensor(counter)) for client, (value, counter) in sent.items()}
    found = combine(rule, RULES[rule], models).model["w1"]
    assert (found.item(), found.dtype) == (wanted, torch.int64)


def test_of_an_even_number_the_lower_of_the_two_integers_in_the_middle_is_taken():
    models = {f"c{k}": group(torch.tensor(value)) for k, value in enumerate((7, 1, 3, 5))}
    assert combine("median", None, models).model["w0"].item() == 3


@pytest.mark.parametrize(("count", "hostile"), [(5, 1), (8, 2), (9, 3)])
def test_flowers_own_rules_say_the_same(count, hostile):
    flower = pytest.importorskip("flwr.server.strategy.aggregate")
    models = drawn(count, 7 * count)
    results = [([tensor.numpy() for tensor in model.values()], 1) for model in models.values()]
    for rule, theirs in (
        ("median", flower.aggregate_median(results)),
        ("trimmed", flower.aggregate_trimmed_avg(results, (hostile + 0.5) / count)),
        ("krum", flower.aggregate_krum(results, hostile, 0)),
        ("multikrum", flower.aggregate_krum(results, hostile, count - hostile)),
    ):
        ours = combine(rule, hostile, models).model
        np.testing.assert_allclose(flat(ours), np.concatenate([part.ravel() for part in theirs]), rtol=1e-4, atol=1e-6)


# --- what they need -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"hostile": 1},
            r"algorithm\.hostile = 1: a mean withstands no hostile client; choose another algorithm\.rule",
        ),
        ({"rule": "krum"}, r"algorithm\.rule = 'krum': it has to know how many .*; set algorithm\.hostile"),
        ({"rule": "trimmed"}, "has to know how many"),
        ({"rule": "multikrum"}, "has to know how many"),
    ],
)
@pytest.mark.parametrize("kind", RULED)
def test_options_that_do_not_go_together(kind, options, text):
    with pytest.raises(InputError, match=text):
        kind(world=WORLD, **options).init(["c00"], DESK)


@pytest.mark.parametrize(
    ("rule", "hostile", "needed"),
    [("median", None, 1), ("median", 2, 5), ("trimmed", 2, 5), ("krum", 1, 5), ("krum", 0, 3), ("multikrum", 1, 5)],
)
@pytest.mark.parametrize("kind", RULED)
def test_too_few_clients_are_refused_before_the_first_round(kind, rule, hostile, needed):
    algorithm = kind(world=WORLD, rule=rule, hostile=hostile, **LOCAL)
    assert algorithm.needs_replies[0] == needed
    if needed > 1:
        with pytest.raises(InputError, match=f"'{rule}' .* needs {needed} clients a round, and {needed - 1} are asked"):
            next(rounds(algorithm, LocalEngine(algorithm, tiny_sites(7), DESK), desk=DESK, until=1, cohort=needed - 1))


def test_an_experiment_knows_before_it_runs():
    table = tiny.table({"name": "fedavg", "rule": "krum", "hostile": 1})
    with pytest.raises(InputError) as told:
        tiny.Experiment.from_table(table).build()
    assert str(told.value) == (
        "algorithm.rule = 'krum' with algorithm.hostile = 1 needs 5 clients a round, and 3 are asked: raise cohort, or change "
        "that setting"
    )
    tiny.experiment({"name": "fedavg", "rule": "krum", "hostile": 0}).build()
    with pytest.raises(InputError, match="and 1 are asked"):
        tiny.experiment({"name": "centralised", "rule": "krum", "hostile": 0}).build()


def test_virtual_images_do_not_hide_what_a_rule_needs():
    inner = FedAvg(world=WORLD, rule="krum", hostile=1)
    assert OnVirtual(inner=inner, virtual=VirtualSettings(), world=WORLD).needs_replies == inner.needs_replies
    assert OnVirtual(inner=Scaffold(world=WORLD), virtual=VirtualSettings(), world=WORLD).needs_replies[0] == 1


def test_a_method_whose_sums_are_no_means_of_models_has_no_such_option():
    for kind in RULED:
        assert {"rule", "hostile"} <= set(kind.__dataclass_fields__)
    for kind in (FedNova, Scaffold, FedProto, FedLGD):
        assert not {"rule", "hostile"} & set(kind.__dataclass_fields__)
    with pytest.raises(InputError, match="rule"):
        Method.parse({"name": "scaffold", "rule": "median"})


def test_a_checkpoint_from_before_these_options_is_the_same_experiment():
    older = tiny.experiment().build().identity
    assert not {"algorithm.rule", "algorithm.hostile", "farthest"} & older.keys()
    newer = tiny.experiment({**tiny.FEDAVG, "rule": "median"}, farthest=10).build().identity
    assert (newer["algorithm.rule"], newer["farthest"]) == ("median", 10)


@dataclass(frozen=True)
class Failing:
    """An engine some of whose clients fail in some rounds."""

    inner: LocalEngine
    failing: frozenset

    def clients(self):
        return self.inner.clients()

    def work(self, number, outbox, task):
        for answer in self.inner.work(number, outbox, task):
            yield Failure(answer.client, "no disk") if (number, answer.client) in self.failing else answer


@pytest.mark.parametrize("kind", RULED)
def test_a_round_with_too_few_usable_replies_leaves_the_state_and_says_why(kind):
    algorithm = kind(world=WORLD, rule="krum", hostile=1, **LOCAL)
    engine = Failing(LocalEngine(algorithm, tiny_sites(5), DESK), frozenset({(2, "c03")}))
    first, second, third = rounds(algorithm, engine, desk=DESK, until=3)
    assert [each.aggregated for each in (first, second, third)] == [True, False, True]
    assert second.withheld == (
        "algorithm.rule = 'krum' with algorithm.hostile = 1 needs 5 replies that can be used, and there are 4"
    )
    assert second.state.put({"round": 0}).to_bytes() == first.state.put({"round": 0}).to_bytes()
    assert [failure.client for failure in second.failures] == ["c03"]
    assert first.withheld is third.withheld is None


def test_krums_choice_is_told():
    algorithm = FedAvg(world=WORLD, rule="multikrum", hostile=1, **LOCAL)
    (only,) = rounds(algorithm, LocalEngine(algorithm, tiny_sites(5), DESK), desk=DESK, until=1)
    scores = {client: line["krum"] for client, line in only.figures["clients"].items()}
    assert only.figures["chosen"] == sorted(scores, key=scores.__getitem__)[:4]
    assert all(line["examples"] >= 18 and "loss" in line for line in only.figures["clients"].values())
    algorithm = FedAvg(world=WORLD, rule="median", **LOCAL)
    (only,) = rounds(algorithm, LocalEngine(algorithm, tiny_sites(5), DESK), desk=DESK, until=1)
    assert "chosen" not in only.figures
    assert "krum" not in only.figures["clients"]["c00"]


def test_a_runs_lines_tell_who_was_chosen(tmp_path):
    drive(tiny.experiment({**tiny.FEDAVG, "rule": "krum", "hostile": 0}, rounds=2), out=tmp_path / "run")
    for row in tiny.rows(tmp_path / "run"):
        (chosen,) = row["chosen"]
        scores = {client["client"]: client["krum"] for client in row["clients"]}
        assert len(scores) == 3
        assert scores[chosen] == min(scores.values())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("norms", ["average", "local"])
def test_batch_norm_under_a_rule(rule, norms):
    algorithm = FedAvg(world=BATCHED, norms=norms, rule=rule, hostile=RULES[rule], **LOCAL)
    *_, last = rounds(algorithm, LocalEngine(algorithm, tiny_sites(5), DESK), desk=DESK, until=2)
    assert last.aggregated
    names = [name for name in last.state.groups["model"] if ".norm." in name]
    assert bool(names) == (norms == "average")
    if norms == "average":
        assert last.state.groups["model"]["body.block1.norm.num_batches_tracked"].dtype == torch.int64
        assert (last.state.groups["model"]["body.block1.norm.running_var"] > 0).all()


@pytest.mark.parametrize("rule", RULES)
def test_the_contract_holds_under_every_rule(rule):
    assert check_algorithm(FedAvg, {**LOCAL, "rule": rule, "hostile": RULES[rule]}) == list(CLAUSES)


# --- the point of it ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tampering:
    """An engine one of whose clients sends ``factor`` times its update."""

    inner: LocalEngine
    factor: float
    hostile: str = "c02"

    def clients(self):
        return self.inner.clients()

    def work(self, number, outbox, task):
        for answer in self.inner.work(number, outbox, task):
            if answer.client != self.hostile or isinstance(answer, Failure):
                yield answer
                continue
            sent, model = outbox[answer.client].groups["model"], answer.bundle.groups["model"]
            far = {name: sent[name] + self.factor * (tensor - sent[name]) for name, tensor in model.items()}
            yield Reply(answer.client, answer.bundle.put(model=far))


def accuracies(algorithm, factor, until=6, **more):
    """By round, on images of all classes."""
    engine = LocalEngine(algorithm, tiny_sites(5, images=30), DESK)
    held = [site.train for site in tiny_sites(12, images=60).values()]
    inputs, labels = torch.cat([shard.inputs() for shard in held]), torch.cat([shard.labels for shard in held])
    found = []
    for each in rounds(algorithm, Tampering(engine, factor), desk=DESK, until=until, **more):
        network = algorithm.models(each.state)["global"].module().eval()
        with torch.no_grad():
            found.append((network(inputs).argmax(1) == labels).double().mean().item())
    return found


@pytest.mark.parametrize("factor", [1e4, -10.0], ids=["huge", "flipped"])
def test_a_mean_goes_astray_and_a_rule_does_not(factor):
    astray = accuracies(FedAvg(world=WORLD, **LOCAL), factor)
    # over the rounds: what such a network guesses in one of them hangs on last bits, and one class of three may be a lucky two
    assert statistics.fmean(astray) < 0.5
    assert max(astray) < 0.9
    for rule, hostile in RULES.items():
        algorithm = FedAvg(world=WORLD, rule=rule, hostile=hostile, **LOCAL)
        assert accuracies(algorithm, factor)[-1] > 0.9, rule


def test_without_hostile_clients_a_rule_learns_as_the_mean_does():
    mean = accuracies(FedAvg(world=WORLD, **LOCAL), 1.0)
    assert mean[0] < 0.5 < 0.95 < mean[-1]
    for rule, hostile in RULES.items():
        found = accuracies(FedAvg(world=WORLD, rule=rule, hostile=hostile, **LOCAL), 1.0)
        assert found[-1] == pytest.approx(mean[-1], abs=0.03), rule


@pytest.mark.parametrize("factor", [1e4, -10.0], ids=["huge", "flipped"])
@pytest.mark.parametrize("kind", RULED)
def test_a_step_stays_near_that_of_the_honest(kind, factor):
    """Of the whole family: how far a round's model lies from what the honest alone make, in lengths of their step."""
    engine = LocalEngine(kind(world=WORLD, **LOCAL), tiny_sites(5), DESK)
    found = {}
    for rule, hostile in {"mean": None, **RULES}.items():
        algorithm = kind(world=WORLD, rule=rule, hostile=hostile, **LOCAL)
        state = algorithm.init(engine.clients(), DESK.at("init")).put({"round": 1})
        outbox = {client: algorithm.broadcast(state, client) for client in engine.clients()}
        answers = list(Tampering(engine, factor).work(1, outbox, "local"))
        honest = kind(world=WORLD, **LOCAL).aggregate(
            state,
            [Reply(each.client, each.bundle.put({"examples": 1})) for each in answers if each.client != "c02"],
            DESK,
        )
        start, wanted = (flat(each.groups["model"]) for each in (state, honest.state))
        reached = flat(algorithm.aggregate(state, answers, DESK).state.groups["model"])
        found[rule] = np.linalg.norm(reached - wanted) / np.linalg.norm(wanted - start)
    assert found.pop("mean") > 1.0
    assert max(found.values()) < 1.0, found


def test_a_bound_on_what_is_sent_refuses_the_huge_and_not_the_flipped():
    algorithm = FedAvg(world=WORLD, **LOCAL)
    assert accuracies(algorithm, 1e4, farthest=3.0)[-1] > 0.9
    assert accuracies(algorithm, -10.0, farthest=3.0)[-1] < 0.5
    engine = Tampering(LocalEngine(algorithm, tiny_sites(5), DESK), 1e4)
    (only,) = rounds(algorithm, engine, desk=DESK, until=1, farthest=3.0)
    assert [failure.client for failure in only.failures] == ["c02"]
    assert only.failures[0].reason.endswith("that is more than farthest = 3 times as far")


def test_only_what_travels_counts_and_weights_do_not():
    algorithm = FedAvg(world=WORLD, rule="median", **LOCAL)
    state = algorithm.init(["a", "b", "c"], DESK)
    replies = [
        Reply(
            client,
            Bundle().put(
                {"examples": examples}, model={name: tensor + far for name, tensor in state.groups["model"].items()}
            ),
        )
        for client, far, examples in (("a", 0.1, 5), ("b", 0.2, 2**50), ("c", 0.15, 5))
    ]
    found = algorithm.aggregate(state, replies, DESK).state.groups["model"]
    for name, tensor in state.groups["model"].items():
        torch.testing.assert_close(found[name], tensor + 0.15)
