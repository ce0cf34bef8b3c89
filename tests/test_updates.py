"""Updates that are cut, noised and in few bits: the arithmetic, the accounting, and any method whose clients send such."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from fedstill import codes
from fedstill.algorithms import ALGORITHMS
from fedstill.algorithms.averaging import FedAvg
from fedstill.algorithms.contrast import MOON
from fedstill.algorithms.feddgm import FedDGM
from fedstill.algorithms.fedlgd import FedLGD
from fedstill.algorithms.fednova import FedNova
from fedstill.algorithms.fedopt import FedAdam
from fedstill.algorithms.updates import ANSWERS, CODES, SCALES, OnUpdates, UpdateSettings
from fedstill.algorithms.vhl import VHL
from fedstill.algorithms.virtual import OWN, OnVirtual, VirtualSettings
from fedstill.audit.federation import Exchange
from fedstill.bundle import Bundle
from fedstill.contract import CLAUSES, check_algorithm, tiny_sites, tiny_world
from fedstill.engines.local import LocalEngine
from fedstill.engines.memory import Memory
from fedstill.errors import Diverged, InputError, RunError
from fedstill.experiment import Experiment
from fedstill.folder import METRICS
from fedstill.rounds import Desk, Reply, rounds
from fedstill.run import drive
from fedstill.seeds import Seed
from fedstill.updates import beside, change_of, cut, epsilon, moved, noise_for, noised

WORLD = tiny_world()
DESK = Desk(Seed.root(0))
SEED = Seed.root(3)
LOCAL = {"epochs": 2, "lr": 0.05, "batch": 8}


def on_updates(method=FedAvg, *, inner=None, world=WORLD, options=LOCAL, **settings):
    return OnUpdates(inner=inner or method(world=world, **options), update=UpdateSettings(**settings))


def run(algorithm, memory=None, *, until=2, sites=None, seed=0, **more):
    desk = Desk(Seed.root(seed))
    engine = LocalEngine(algorithm, sites or tiny_sites(), desk, memory or Memory())
    return list(rounds(algorithm, engine, desk=desk, until=until, **more))


def visit(algorithm, memory=None, client="c00", number=1):
    """One client's reply, what it was sent, and its new memory."""
    state = algorithm.init(list(tiny_sites()), DESK)
    inbox = algorithm.broadcast(state, client)
    desk = DESK.at(number, client)
    reply, kept = algorithm.local(inbox, tiny_sites()[client], memory or Bundle(), desk)
    return inbox, reply, kept


def length(before, after):
    return math.sqrt(sum(float((after[name].double() - before[name].double()).square().sum()) for name in before))


# --- codes --------------------------------------------------------------------------------------------------------------


@given(
    bits=st.integers(codes.LEAST, codes.MOST),
    values=st.lists(st.floats(-1e38, 1e38, allow_subnormal=False), max_size=40),
)
def test_a_code_lies_within_a_step_and_takes_so_many_bits(bits, values):
    tensor = torch.tensor(values, dtype=torch.float64)
    code, scale = codes.encode(tensor, bits, SEED)
    assert code.dtype == torch.uint8
    assert len(code) == math.ceil(len(values) * bits / 8)
    found = codes.decode(code, scale, tensor.shape, bits)
    assert found.shape == tensor.shape
    step = float(scale) / (2 ** (bits - 1) - 1)
    assert torch.all((found - tensor).abs() <= step * (1 + 1e-9))
    assert torch.all(found[tensor == 0] == 0)


def test_the_mean_of_codes_is_what_was_coded():
    values = torch.tensor([0.9, -0.35, 0.0, 1.0, -1.0, 0.02], dtype=torch.float64)
    for bits in (2, 3, 8):
        found = torch.stack(
            [codes.decode(*codes.encode(values, bits, SEED.at(i)), values.shape, bits) for i in range(4000)]
        )
        step = 1 / (2 ** (bits - 1) - 1)
        torch.testing.assert_close(found.mean(0), values, atol=5 * step / 2 / math.sqrt(4000), rtol=0)
        assert torch.all(found.var(0) <= step**2 / 4 * 1.1)


def test_two_bits_are_three_values():
    values = torch.randn(1000, generator=SEED.torch())
    found = codes.decode(*codes.encode(values, 2, SEED), values.shape, 2)
    assert len(found.unique()) == 3


def test_a_number_between_two_float32_is_no_larger_than_its_scale():
    values = torch.tensor([1 + 1e-9, -1.0], dtype=torch.float64)
    _, scale = codes.encode(values, 16, SEED)
    assert float(scale) >= 1 + 1e-9


@pytest.mark.parametrize(
    ("code", "scale", "said"),
    [
        (torch.zeros(4, dtype=torch.uint8), torch.ones(1), "no code of 5 entries in 4 bits"),
        (torch.zeros(2, dtype=torch.uint8), torch.ones(1), "no code of 5 entries"),
        (torch.zeros(3), torch.ones(1), "no code of 5 entries"),
        (None, torch.tensor([math.nan]), "no finite float32"),
        (None, torch.tensor([math.inf]), "no finite float32"),
        (None, torch.tensor([-1.0]), "no finite float32"),
        (None, torch.ones(2), "no finite float32"),
        (None, torch.ones(1, dtype=torch.float64), "no finite float32"),
        (torch.full((3,), 255, dtype=torch.uint8), torch.ones(1), "a code above 14"),
    ],
)
def test_what_is_no_code_is_refused(code, scale, said):
    code = codes.encode(torch.ones(5), 4, SEED)[0] if code is None else code
    with pytest.raises(InputError, match=said):
        codes.decode(code, scale, torch.Size([5]), 4)


def test_what_is_not_finite_has_no_code():
    with pytest.raises(InputError, match="not finite, or too large"):
        codes.encode(torch.tensor([1.0, math.nan]), 4, SEED)
    with pytest.raises(InputError, match="not finite, or too large"):
        codes.encode(torch.tensor([1e39], dtype=torch.float64), 4, SEED)


# --- clip, noise, accounting ------------------------------------------------------------------------------------------


def test_a_change_is_cut_over_all_tensors_together():
    change = {"a": torch.tensor([3.0]).double(), "b": torch.tensor([[4.0]]).double()}
    assert length({"a": torch.zeros(1), "b": torch.zeros(1, 1)}, cut(change, 1.0)) == pytest.approx(1)
    assert all(torch.equal(cut(change, 6.0)[name], change[name]) for name in change)
    assert all(float(each) == 0 for each in cut({name: 0 * each for name, each in change.items()}, 1.0).values())
    with pytest.raises(InputError, match="not finite"):
        cut({"a": torch.tensor([math.inf])}, 1.0)


def test_noise_has_the_stated_deviation():
    zero = {"a": torch.zeros(40_000, dtype=torch.float64)}
    found = noised(zero, 0.5, lambda _, shape: torch.randn(shape, generator=SEED.torch(), dtype=torch.float64))
    assert float(found["a"].std()) == pytest.approx(0.5, rel=0.02)


def test_moving_a_network_by_its_change_gives_it_back():
    before = {"a": torch.randn(50, generator=SEED.torch()), "n": torch.tensor(3)}
    after = {"a": torch.randn(50, generator=SEED.at(1).torch()), "n": torch.tensor(4)}
    assert beside(after) == ["n"]
    change = change_of(before, after, ["n"])
    assert torch.equal(moved(before, change)["a"], after["a"])


@given(
    budget=st.floats(1e-3, 1000),
    answers=st.integers(1, 10_000),
    delta=st.sampled_from([1e-12, 1e-5, 0.1]),
)
def test_the_noise_found_keeps_the_budget_and_wastes_nothing(budget, answers, delta):
    noise = noise_for(budget, answers, delta)
    spent = epsilon(answers, noise, delta)
    assert spent <= budget
    assert spent == pytest.approx(budget, rel=1e-4)


# --- a client's reply ---------------------------------------------------------------------------------------------------


def test_a_reply_is_no_longer_than_clip_and_points_where_it_did():
    inbox, plain, _ = visit(on_updates(clip=1e6))
    _, short, _ = visit(on_updates(clip=0.01))
    before = inbox.groups["model"]
    whole = length(before, plain.groups["model"])
    assert whole > 0.02
    assert length(before, short.groups["model"]) == pytest.approx(0.01, rel=1e-4)
    for name, start in before.items():
        expected = start + 0.01 / whole * (plain.groups["model"][name] - start)
        torch.testing.assert_close(short.groups["model"][name], expected, atol=1e-6, rtol=0)
    assert "loss" in plain.numbers  # nothing is private here
    _, untouched, _ = visit(FedAvg(world=WORLD, **LOCAL))
    assert all(torch.equal(untouched.groups["model"][name], plain.groups["model"][name]) for name in before)


def test_noise_leaves_counts_alone_and_grows_with_the_network():
    inbox, reply, memory = visit(on_updates(clip=2.0, noise=3.0))
    assert reply.numbers == {"examples": len(tiny_sites()["c00"].train), ANSWERS: 1}
    entries = sum(each.numel() for each in inbox.groups["model"].values())
    moved_by = length(inbox.groups["model"], reply.groups["model"])
    assert moved_by == pytest.approx(6 * math.sqrt(entries), rel=0.1)
    _, again, memory = visit(on_updates(clip=2.0, noise=3.0), memory, number=2)
    assert again.numbers[ANSWERS] == 2
    assert not torch.equal(*(each.groups["model"]["head.bias"] for each in (reply, again)))


@pytest.mark.parametrize("bits", [2, 4, 8, 11, 16])
def test_bits_are_counted_as_they_travel_and_the_server_reads_them(bits):
    algorithm = on_updates(bits=bits)
    inbox, reply, _ = visit(algorithm)
    before = inbox.groups["model"]
    assert reply.groups.keys() == {CODES, SCALES}
    sizes = [math.ceil(each.numel() * bits / 8) + 4 for each in before.values()]
    assert reply.nbytes == sum(sizes) + 8 * len(reply.numbers)
    found = algorithm.opened(inbox, reply)
    assert list(found.groups["model"]) == list(before)
    _, plain, _ = visit(FedAvg(world=WORLD, **LOCAL))
    for name in before:
        step = float(reply.groups[SCALES][name]) / (2 ** (bits - 1) - 1)
        off = (found.groups["model"][name] - plain.groups["model"][name]).abs().max()
        assert float(off) <= step * 1.001 + 1e-7
    done = run(algorithm, until=1)[0]
    assert done.bytes_up == len(tiny_sites()) * reply.nbytes
    assert not done.failures


def test_statistics_of_batch_norm_travel_as_they_are():
    world = replace(WORLD, architecture=replace(WORLD.architecture, options={"depth": 2, "width": 4, "norm": "batch"}))
    algorithm = on_updates(world=world, clip=1e-9, bits=8)
    inbox, reply, _ = visit(algorithm)
    kept = beside(inbox.groups["model"])
    assert kept
    assert list(reply.groups["model"]) == kept
    found = algorithm.opened(inbox, reply).groups["model"]
    assert any(not torch.equal(found[name], inbox.groups["model"][name]) for name in kept)
    _, plain, _ = visit(FedAvg(world=world, **LOCAL))
    assert all(torch.equal(found[name], plain.groups["model"][name]) for name in kept)
    assert run(algorithm)[-1].aggregated
    with pytest.raises(InputError, match=r"update\.noise does not cover statistics of the images such as"):
        on_updates(world=world, clip=1.0, noise=1.0).init(["c00"], DESK)


def test_a_method_of_the_users_own_that_sends_more_fails_with_the_reason():
    from fedstill.algorithms.scaffold import Scaffold

    (only,) = run(on_updates(Scaffold, clip=1.0), until=1)
    assert not only.aggregated
    assert {failure.reason for failure in only.failures} == {
        "[update] covers a network alone, and the reply holds 'control'"
    }


# --- budgets --------------------------------------------------------------------------------------------------------------


def test_what_is_spent_is_told_and_grows():
    first, second = run(on_updates(clip=1.0, noise=4.0))
    for each, answers in ((first, 1), (second, 2)):
        for line in each.figures["clients"].values():
            assert line["update"] == {
                "epsilon": epsilon(answers, 4.0, 1e-5),
                "delta": 1e-5,
                "noise": 4.0,
                "answers": answers,
            }
    assert "update" not in run(on_updates(clip=1.0))[0].figures["clients"]["c00"]


def test_a_budget_is_spent_and_then_refused():
    memory = Memory()
    algorithm = on_updates(clip=1.0, epsilon=3.0, rounds=2)
    done = run(algorithm, memory, until=3)
    last = done[1].figures["clients"]["c00"]["update"]
    assert last["epsilon"] == pytest.approx(3.0, rel=1e-6)
    assert last["epsilon"] <= 3.0
    assert not done[2].aggregated
    assert {failure.reason for failure in done[2].failures} == {
        "its budget is spent: epsilon = 3 was to last update.rounds = 2 of its answers, and another would go beyond it"
    }


FEDDM = {"name": "feddm", "match_steps": 2, "ipc": 1, "global_epochs": 1, "real_batch": 4, "augmentation": "none"}


@pytest.mark.parametrize(
    ("settings", "done"),
    [
        ({"update": {"clip": 1.0, "epsilon": 3.0, "rounds": 1}}, 1),
        ({"algorithm": FEDDM | {"privacy_epsilon": 8.0, "privacy_clip": 1.0, "privacy_rounds": 1}}, 1),
    ],
    ids=["update", "feddm"],
)
def test_a_run_whose_budgets_are_spent_ends_as_finished(tmp_path, settings, done):
    out = tmp_path / "run"
    asked = tiny.experiment(**settings, rounds=done)
    drive(asked, out=out)
    before = tiny.rows(out)
    for rounds_asked in (done + 2, done + 1):  # a second time, too
        with pytest.raises(RunError) as caught:
            drive(replace(asked, rounds=rounds_asked), out=out, resume=True)
        said = str(caught.value)
        assert f"no client gave a usable reply in round {done + 1}: 'c00': its budget is spent" in said
        assert f"the run ends at round {done} and is kept in {out} as finished" in said
        assert "fedstill resume" not in said
        assert json.loads((out / "summary.json").read_text())["finished"] is True
        assert Experiment.read(out / "experiment.toml").rounds == done
        assert tiny.rows(out) == before
    assert drive(Experiment.read(out / "experiment.toml"), out=out, resume=True).rounds == done


def test_a_run_that_asks_for_more_than_its_budget_ends_where_that_does(tmp_path):
    with pytest.raises(RunError, match="the run ends at round 1 and is kept in"):
        drive(tiny.experiment(update={"clip": 1.0, "epsilon": 3.0, "rounds": 1}, rounds=3), out=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] == 1
    assert (tmp_path / "run" / "report.html").exists()


def test_an_images_budget_may_be_had_besides():
    pytest.importorskip("opacus")
    options = LOCAL | {"privacy_epsilon": 8.0, "privacy_delta": 1e-3, "privacy_rounds": 2}
    last = run(on_updates(options=options, clip=1.0, noise=4.0))[-1]
    assert not last.failures
    for line in last.figures["clients"].values():
        assert 0 < line["privacy"]["epsilon"] <= 8.0
        assert line["update"]["answers"] == 2
        assert "loss" not in line


def test_a_client_that_was_asked_less_has_spent_less():
    done = run(on_updates(clip=1.0, noise=4.0), until=4, cohort=1)
    answers = [line["update"]["answers"] for each in done for line in each.figures["clients"].values()]
    assert answers != [1, 2, 3, 4]  # not always the same client
    assert max(answers) < 4


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ({ANSWERS: 0}, "how many noised answers"),
        ({ANSWERS: 1.5}, "how many noised answers"),
        ({ANSWERS: 3}, "it says that it has given 3 noised answers, which is beyond update.rounds = 2"),
    ],
)
def test_a_client_that_says_too_much_is_left_out(spoil, said):
    algorithm = on_updates(clip=1.0, epsilon=3.0, rounds=2)
    inbox, reply, _ = visit(algorithm)
    with pytest.raises(InputError, match=said):
        algorithm.opened(inbox, reply.put(spoil))
    state = algorithm.init(list(tiny_sites()), DESK)
    outcome = algorithm.aggregate(state, [Reply("c00", reply.put(spoil)), Reply("c01", reply)], DESK)
    assert [failure.client for failure in outcome.failures] == ["c00"]
    assert list(outcome.figures["clients"]) == ["c01"]


# --- any method -----------------------------------------------------------------------------------------------------------

ALL = {"clip": 0.5, "noise": 0.01, "bits": 6}
SMALL = {"distill_steps": 2, "student_steps": 2, "ipc": 1, "global_epochs": 2, "epochs": 2, "lr_features": 10.0}


@pytest.mark.parametrize(
    "settings",
    [{"clip": 0.1}, {"bits": 3}, {"clip": 0.5, "noise": 0.1}, {"clip": 0.5, "epsilon": 50.0, "rounds": 3}, ALL],
    ids=lambda settings: "+".join(settings),
)
def test_the_contract_holds_with_every_option(settings):
    assert check_algorithm(lambda world: on_updates(world=world, options={"epochs": 2}, **settings)) == list(CLAUSES)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (FedNova, {"epochs": 2, "batch": 8}),
        (FedAdam, {"epochs": 2}),
        (MOON, {"epochs": 2}),
        (VHL, {"epochs": 2, "virtual_ipc": 5, "virtual_batch": 8}),
        (FedAvg, {"epochs": 2, "rule": "trimmed", "hostile": 1}),
        pytest.param(FedDGM, SMALL | {"loss_limit": 1e9}, marks=pytest.mark.slow),
        pytest.param(
            FedLGD,
            {
                "epochs": 2,
                "lr": 0.05,
                "selected": (1, 3),
                "match_steps": 2,
                "distill_steps": 2,
                "global_ipc": 2,
                "virtual": VirtualSettings(ipc=2, steps=2),
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda each: each.__name__ if isinstance(each, type) else "",
)
def test_the_contract_holds_for_other_methods(method, options):
    assert check_algorithm(lambda world: on_updates(method, world=world, options=options, **ALL)) == list(CLAUSES)


def test_the_contract_holds_on_virtual_images():
    def made(world):
        inner = FedAvg(world=world, epochs=2)
        return on_updates(inner=OnVirtual(inner=inner, virtual=VirtualSettings(ipc=2, steps=2), world=world), **ALL)

    for clause, check in CLAUSES.items():
        if clause != "a reply carries its weight":  # that of its virtual images, as without the table
            assert check(made(WORLD)) is None, clause
    memory = Memory()
    run(made(WORLD), memory)
    assert OWN in memory.read("c00", 99).groups


def test_robust_rules_see_what_is_decoded():
    algorithm = on_updates(options=LOCAL | {"rule": "median", "hostile": 1}, bits=8)
    assert algorithm.needs_replies[0] == 3
    plain = FedAvg(world=WORLD, **LOCAL, rule="median", hostile=1)
    coded, whole = (run(each, until=1)[0].state.groups["model"] for each in (algorithm, plain))
    for name in whole:
        torch.testing.assert_close(coded[name], whole[name], atol=0.02, rtol=0)


def test_farthest_looks_at_what_is_decoded():
    algorithm = on_updates(bits=8)

    class Far:
        """A client whose scales are huge; its codes are honest."""

        def __init__(self, inner):
            self.inner = inner

        def clients(self):
            return self.inner.clients()

        def work(self, number, outbox, task):
            for answer in self.inner.work(number, outbox, task):
                scales = {name: 1e9 * scale for name, scale in answer.bundle.groups[SCALES].items()}
                spoilt = replace(answer, bundle=answer.bundle.put(**{SCALES: scales}))
                yield spoilt if answer.client == "c00" else answer

    engine = Far(LocalEngine(algorithm, tiny_sites(), DESK, Memory()))
    (done,) = rounds(algorithm, engine, desk=DESK, until=1)
    assert [failure.client for failure in done.failures] == ["c00"]
    assert "more than farthest" in done.failures[0].reason
    (noisy,) = run(on_updates(clip=1.0, noise=100.0), until=1, farthest=10.0)
    assert not noisy.aggregated
    assert all("more than farthest = 10" in failure.reason for failure in noisy.failures)


# --- an experiment ----------------------------------------------------------------------------------------------------


def test_an_experiment_without_the_table_is_as_before():
    experiment = tiny.experiment()
    assert experiment.update is None
    assert "[update]" not in experiment.to_toml()
    built = experiment.build()
    assert isinstance(built.algorithm, FedAvg)
    assert not any(key.startswith("update") for key in built.identity)
    idle = tiny.experiment(update={"delta": 1e-3}).build()
    assert isinstance(idle.algorithm, FedAvg)
    assert idle.identity == built.identity


def test_an_experiment_with_it_reads_back_and_is_another():
    import tomllib

    experiment = tiny.experiment(update={"clip": 1.0, "bits": 8})
    assert Experiment.from_table(tomllib.loads(experiment.to_toml())) == experiment
    identity = experiment.build().identity
    assert (identity["update.clip"], identity["update.bits"]) == (1.0, 8)
    assert "update.delta" not in identity  # of nothing, without noise


@pytest.mark.parametrize(
    ("update", "sentence"),
    [
        ({"clipp": 1.0}, "update.clipp: no such key: did you mean 'clip'?"),
        ({"clip": 0}, "update.clip = 0: must be above 0"),
        ({"bits": 1}, "update.bits = 1: must be at least 2"),
        ({"bits": 17}, "update.bits = 17: must be at most 16"),
        ({"noise": 1.0}, "update.noise: noise hides a change of a known length alone; set update.clip, too"),
        ({"epsilon": 1.0, "rounds": 3}, "update.epsilon: noise hides a change of a known length alone"),
        ({"clip": 1.0, "epsilon": 1.0}, "say in update.rounds how many answers of a client it is to last"),
        ({"clip": 1.0, "rounds": 3}, "update.rounds = 3: there is no budget to last so long"),
        ({"clip": 1.0, "noise": 1.0, "epsilon": 1.0, "rounds": 3}, "it is found for update.epsilon = 1; leave one"),
    ],
    ids=str,
)
def test_a_wrong_table_is_answered_in_one_sentence(update, sentence):
    with pytest.raises(InputError) as caught:
        tiny.experiment(update=update).build()
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("algorithm", "why"),
    [
        ({"name": "feddm"}, "its clients send synthetic images and labels and no network"),
        ({"name": "oneshot"}, "its clients send synthetic images and labels and no network"),
        ({"name": "fedproto"}, "its clients send class means in feature space beside their networks"),
        ({"name": "scaffold"}, "its clients send control variates (SCAFFOLD) beside their networks"),
        ({"name": "prioronly"}, "its clients send nothing that they learnt"),
        ({"name": "centralised"}, "it pools all images on one site, and nothing is sent"),
        ({"name": "fedlgd", "average": "gradients"}, "with algorithm.average = 'gradients' its clients send gradients"),
        ({"name": "fedlgd", "selected_training": "both"}, "its clients send gradients, which it does not cover"),
    ],
    ids=str,
)
def test_methods_that_send_more_are_refused_with_the_reason(algorithm, why):
    with pytest.raises(InputError) as caught:
        tiny.experiment(update={"clip": 1.0}, algorithm=algorithm).algorithm.build(
            WORLD, None, UpdateSettings(clip=1.0)
        )
    assert why in str(caught.value)
    assert "[update]" in str(caught.value)


def test_no_method_of_the_table_is_forgotten():
    taken = {name for name, entry in ALGORITHMS.items() if entry.sends == ("model",) and not entry.pooled}
    assert taken == {"fedavg", "fedprox", "fednova", "fedavgm", "fedadam", "moon", "vhl", "fedlgd", "feddgm"}


def test_a_run_tells_what_is_spent_and_resumes_to_the_same_bits(tmp_path):
    settings = {"clip": 1.0, "epsilon": 20.0, "rounds": 3, "bits": 8}
    straight, halted = tmp_path / "straight", tmp_path / "halted"
    done = drive(tiny.experiment(update=settings), out=straight)
    assert done is not None
    drive(tiny.experiment(update=settings, rounds=2), out=halted)
    drive(tiny.experiment(update=settings, rounds=3), out=halted, resume=True)
    assert tiny.rows(straight) == tiny.rows(halted)
    first, *_, last = (json.loads(line) for line in (straight / METRICS).read_text().splitlines())
    for client in last["clients"]:
        assert client["update"]["answers"] == 3
        assert client["update"]["epsilon"] == pytest.approx(20.0, rel=1e-6)
        assert client.get("loss") is None
    plain = tmp_path / "plain"
    drive(tiny.experiment(rounds=1), out=plain)
    sent = json.loads((plain / METRICS).read_text())["bytes_up"]
    assert sent / 4.2 < first["bytes_up"] < sent / 2.5  # of few entries, scales weigh


def test_the_estimate_counts_what_travels():
    from fedstill.cost import estimate

    with_bits, without = (estimate(tiny.experiment(rounds=1, **more)) for more in ({"update": {"bits": 4}}, {}))
    assert with_bits.bytes_down == without.bytes_down
    (whole,) = {up for _, up in without.traffic}
    (coded,) = {up for _, up in with_bits.traffic}
    algorithm = tiny.experiment(rounds=1, update={"bits": 4}).build()
    (done,) = run(algorithm.algorithm, sites=algorithm.sites, until=1)
    assert coded == done.bytes_up
    assert coded < whole / 3
    noisy = estimate(tiny.experiment(rounds=2, update={"clip": 1.0, "epsilon": 3.0, "rounds": 1}))
    assert any("has spent epsilon = 3 at delta = 1e-05" in remark for remark in noisy.remarks)
    assert any("a client that has given 1 answer refuses" in remark for remark in noisy.remarks)
    assert any("with noise = " in remark for remark in noisy.remarks)


def test_an_audit_sees_what_the_server_sees(tmp_path):
    from fedstill.attacked import exchange_of, open_target

    found = {}
    for name, keep in (("kept", True), ("again", False)):
        out = tmp_path / name
        drive(tiny.experiment(update={"bits": 3}, output={"keep_messages": keep}), out=out)
        target = open_target(out, Experiment.read(out / "experiment.toml"), print)
        client = target.client(None)
        heard = exchange_of(target, client, 2, DESK, lambda done, total: None)
        assert heard.source == ("kept" if keep else "re-run")
        found[name] = heard.exchange.up
    assert found["kept"].groups.keys() == {"model"}
    algorithm = on_updates(bits=3)
    inbox, reply, _ = visit(algorithm)
    with pytest.raises(InputError, match="the client's message of round 2 tells nothing: its reply holds no change"):
        Exchange(2, inbox, reply.drop(SCALES)).read_by(algorithm)
    assert found["kept"].to_bytes() == found["again"].to_bytes()


# --- what noise is not to let through ---------------------------------------------------------------------------------


class Telling(FedAvg):
    """FedAvg of a user's own, whose reply says more of the images."""

    def local(self, inbox, site, memory, desk):
        reply, kept = super().local(inbox, site, memory, desk)
        return reply.put({"steps": float(site.train.images.sum()), "virtual": 3}), kept


def test_of_a_method_of_the_users_own_the_number_of_images_alone_is_left():
    for settings in ({}, {"virtual": VirtualSettings(steps=1)}):
        inner = Telling(world=WORLD, **LOCAL)
        inner = OnVirtual(inner=inner, world=WORLD, **settings) if settings else inner
        _, reply, _ = visit(on_updates(inner=inner, clip=1.0, noise=1.0))
        assert reply.numbers.keys() == {"examples", ANSWERS}
    _, reply, _ = visit(on_updates(Telling, clip=1.0))
    assert "steps" in reply.numbers  # nothing is private here


def test_training_that_diverged_is_a_noised_answer_like_any_other():
    def diverging(method=FedAvg, **more):
        return on_updates(method, options=LOCAL | {"lr": 1e30}, **more)

    inbox, reply, memory = visit(diverging(clip=1e-3, noise=2.0))
    assert reply.numbers == {"examples": len(tiny_sites()["c00"].train), ANSWERS: 1}
    entries = sum(each.numel() for each in inbox.groups["model"].values())
    assert length(inbox.groups["model"], reply.groups["model"]) == pytest.approx(2e-3 * math.sqrt(entries), rel=0.1)
    _, again, _ = visit(diverging(clip=1e-3, noise=2.0), memory, number=2)
    assert again.numbers[ANSWERS] == 2
    assert run(diverging(clip=1e-3, noise=2.0, bits=8), until=1)[0].aggregated
    for seen in ({"clip": 1e-3}, {"clip": 1e-3, "noise": 2.0, "method": FedNova}):
        with pytest.raises(Diverged):
            visit(diverging(**seen))


def test_a_change_that_is_not_finite_is_noise_alone():
    algorithm = on_updates(clip=1e-3, noise=2.0)
    inbox = algorithm.broadcast(algorithm.init(list(tiny_sites()), DESK), "c00")
    model = inbox.groups["model"]
    broken = Bundle({"model": {name: torch.full_like(each, math.nan) for name, each in model.items()}}, {"examples": 4})
    still = Bundle({"model": model}, {"examples": 4})
    found, wanted = (algorithm.sent(inbox, each, SEED).groups["model"] for each in (broken, still))
    assert all(torch.equal(found[name], wanted[name]) for name in model)
    with pytest.raises(InputError, match="not finite"):
        on_updates(clip=1e-3).sent(inbox, broken, SEED)


# --- real sites -------------------------------------------------------------------------------------------------------

STATED = {"data": {"size": 8, "channels": 1, "classes": list("0123456789"), "mean": [0.5], "std": [0.5]}}


def test_real_sites_take_clip_and_bits_and_no_noise_of_the_runs_seed():
    from fedstill.deployment.federation import Federation, agreed, check_summable, restored

    plain = tiny.experiment(**STATED)
    short = tiny.experiment(**STATED, update={"clip": 1.0, "bits": 8})
    assert Federation.of(short).identity != Federation.of(plain).identity
    assert restored(agreed(short), {}).update == short.update
    for noisy in ({"clip": 1.0, "noise": 1.0}, {"clip": 1.0, "epsilon": 1.0, "rounds": 1}):
        with pytest.raises(InputError, match="its noise comes from the run's seed, which a federation's server knows"):
            Federation.of(tiny.experiment(**STATED, update=noisy))
    check_summable(short.algorithm, 3, UpdateSettings(clip=1.0))
    with pytest.raises(InputError, match=r"update\.bits = 8: sites that mask their models send whole ones"):
        check_summable(short.algorithm, 3, short.update)


def test_codes_travel_as_model_weights():
    from fedstill.deployment.policy import word_of
    from fedstill.engines.flower.records import from_records, to_records

    assert word_of(CODES) == word_of(SCALES) == "model weights"
    _, reply, _ = visit(on_updates(bits=5))
    assert from_records(to_records(reply)).to_bytes() == reply.to_bytes()


def test_clipped_updates_go_into_a_secure_sum(tmp_path):
    pytest.importorskip("flwr")
    from fedstill.engines.flower.secure import SecureEngine
    from rooms import RUN, Room

    algorithm = on_updates(clip=0.1)
    room = Room(LocalEngine(algorithm, tiny_sites(), DESK, Memory()), tmp_path)
    (summed,) = rounds(algorithm, SecureEngine(room, RUN, 64.0), desk=DESK, until=1)
    (plain,) = run(algorithm, until=1)
    assert summed.aggregated
    for name, tensor in plain.state.groups["model"].items():
        torch.testing.assert_close(summed.state.groups["model"][name], tensor, atol=1e-6, rtol=0)
