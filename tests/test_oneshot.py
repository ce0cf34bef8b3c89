"""OneShot: what is sent, what is chosen, what a kill costs, what a stranger may not send, and the server's searches."""

import json
import sys
from dataclasses import replace

import pytest
import torch

import tiny
from fedstill.algorithms import oneshot as module
from fedstill.algorithms import sending
from fedstill.algorithms.choosing import AT_WORK, decoded, encoded, held_out, recipe_of, space_of
from fedstill.algorithms.oneshot import OneShot
from fedstill.bundle import Bundle
from fedstill.contract import tiny_sites, tiny_world
from fedstill.cost import estimate
from fedstill.data.shard import Shard
from fedstill.distill import experts as experts_module
from fedstill.distill.course import Course
from fedstill.engines.local import LocalEngine
from fedstill.errors import InputError, MissingExtra, RunError
from fedstill.models.choice import Choice
from fedstill.privacy import epsilon_of
from fedstill.rounds import Desk, Reply, rounds
from fedstill.run import drive
from fedstill.search import Trial
from fedstill.seeds import Seed
from fedstill.train import Recipe, fit

WORLD = tiny_world()
DESK = Desk(Seed.root(0))
TOML = tiny.ONESHOT
SMALL = {key: value for key, value in TOML.items() if key != "name"}


def make(**options):
    return OneShot(world=WORLD, **{**SMALL, **options})


def run(algorithm, sites=None, *, until=1, state=None, start=0):
    engine = LocalEngine(algorithm, sites or tiny_sites(), DESK)
    return list(rounds(algorithm, engine, desk=DESK, until=until, state=state, start=start))


def sent(algorithm, client="c00", site=None):
    engine = LocalEngine(algorithm, {client: site or tiny_sites()[client]}, DESK)
    (answer,) = engine.work(1, {client: Bundle()}, "local")
    assert isinstance(answer, Reply), answer
    return answer.bundle


# --- what is sent ------------------------------------------------------------------------------------------------------


def test_a_base_set_is_real_images_and_what_distillation_begins_with():
    real = tiny_sites()["c00"].train
    base = sent(make(distill_steps=0)).groups["synthetic"]
    assert torch.bincount(base["labels"]).tolist() == [2, 2, 2]
    pixels = {image.numpy().tobytes() for image in real.images.float() / 255}
    near = [min((image - one.float() / 255).abs().max() for one in real.images) for image in base["images"]]
    assert pixels
    assert max(near) < 1e-6
    distilled = sent(make()).groups["synthetic"]
    assert torch.equal(distilled["labels"], base["labels"])
    assert not torch.allclose(distilled["images"], base["images"])
    assert "statistics" not in sent(make(distill_steps=0)).groups


def test_a_client_sends_its_images_once_and_is_sent_nothing():
    (only,) = run(make(), until=5)
    assert only.bytes_down == 0
    images = 4 * 6 * (8 * 8 * 4 + 8)
    assert images < only.bytes_up < 2 * images
    assert only.figures["union"] == 24
    assert set(only.state.members("synthetic")) == {"c00", "c01", "c02", "c03"}


def test_bytes_take_a_quarter():
    whole, small = sent(make()).groups["synthetic"]["images"], sent(make(quantise=True)).groups["synthetic"]["images"]
    assert small.dtype == torch.uint8
    assert small.nbytes * 4 == whole.nbytes
    (only,) = run(make(quantise=True))
    assert not only.failures
    assert only.state.members("synthetic")["c00"]["images"].dtype == torch.uint8


@pytest.mark.parametrize("start", ["real", "mean", "noise", "statistics"])
def test_a_class_may_be_smaller_than_ipc_or_missing(start):
    site = tiny_sites()["c00"]
    rows = [
        *(site.train.labels == 0).nonzero().flatten().tolist()[:1],
        *(site.train.labels == 2).nonzero().flatten().tolist(),
    ]
    reply = sent(make(ipc=4, start=start), site=replace(site, train=site.train.take(rows)))
    assert reply.groups["synthetic"]["labels"].tolist() == [0] * 4 + [2] * 4
    assert reply.finite()


def test_means_are_of_parts_of_a_class():
    real = tiny_sites()["c00"].train
    images = sent(make(distill_steps=0, start="mean", ipc=2)).groups["synthetic"]["images"]
    of_class = real.images[real.labels == 0].float() / 255
    half = len(of_class) / 2
    assert half.is_integer()
    torch.testing.assert_close(images[:2].mean(0), of_class.mean(0))
    assert not torch.allclose(images[0], images[1])


def test_latents_of_a_prior():
    reply = sent(make(generator="fedstill.contract:tiny_prior", start="draw"))
    assert reply.groups["synthetic"]["images"].shape == (6, 1, 8, 8)


# --- the node ----------------------------------------------------------------------------------------------------------


def test_the_record_of_a_node_travels_and_is_told():
    (only,) = run(make())
    line = only.figures["clients"]["c00"]
    (attempt,) = line["attempts"]
    assert attempt["steps"] == 6
    assert [check["step"] for check in attempt["checks"]] == [0, 2, 4, 6]
    assert line["matching"]["retries"] == 0
    assert line["rate"] == attempt["checks"][line["chosen"]["check"]]["rate"]
    json.dumps(line, allow_nan=False)


def test_too_large_a_step_is_told_and_cured_by_a_smaller_one():
    """As the misprinted step size of trajectory matching's table does."""
    wild = {"lr_images": 1e6, "distill_steps": 12, "student_steps": 4}
    (only,) = run(make(**wild))
    ill = only.figures["clients"]["c00"]
    assert ill["matching"]["sick"] is not None
    assert "c00" in only.state.members("synthetic")  # chosen by validation, so it is taken all the same
    (only,) = run(make(**wild, retries=3, retry_scale=1e-3))
    well = only.figures["clients"]["c00"]
    assert 1 <= well["matching"]["retries"] <= 3
    assert all(each["ill"] for each in well["attempts"][:-1])
    assert well["distill_steps"] > 12


def test_the_ill_may_be_left_out():
    algorithm = make(lr_images=1e6, drop_ill=True)
    algorithm = replace(algorithm, distill_steps=12, student_steps=4)
    (only,) = run(algorithm)
    left = {failure.client: failure.reason for failure in only.failures}
    sick = {client for client, line in only.figures["clients"].items() if line["matching"]["sick"]}
    assert sick
    assert left.keys() == sick
    assert set(only.state.members("synthetic")) == {"c00", "c01", "c02", "c03"} - sick


@pytest.mark.slow
@pytest.mark.parametrize("what", ["experts", "distil", "second client"])
def test_a_killed_client_loses_little_and_ends_in_the_same_bits(tmp_path, monkeypatch, what):
    experiment = tiny.experiment(TOML, rounds=1)
    drive(experiment, out=tmp_path / "straight")
    taken = {"fit": 0, "pull": 0}
    die_at = {"experts": ("fit", 2), "distil": ("pull", 5), "second client": ("pull", 9)}[what]
    fit_as_is, pull_as_is = sending.train_experts, sending.ExpertMatcher.pull

    def counted(name, function):
        def call(*args, **more):
            taken[name] += 1
            if die_at is not None and die_at == (name, taken[name]):
                raise KeyboardInterrupt
            return function(*args, **more)

        return call

    monkeypatch.setattr(sending, "train_experts", counted("fit", fit_as_is))
    monkeypatch.setattr(sending.ExpertMatcher, "pull", counted("pull", pull_as_is))
    with pytest.raises(KeyboardInterrupt):
        drive(experiment, out=tmp_path / "killed")
    assert (tmp_path / "killed" / "scratch").is_dir()
    before, die_at = taken["pull"], None
    drive(experiment, out=tmp_path / "killed", resume=True)
    assert tiny.result(tmp_path / "killed") == tiny.result(tmp_path / "straight")
    # 3 clients of 6 steps: at most what lies between two savings was done twice
    assert taken["pull"] - before <= 18 - before + 1 + 2
    assert not (tmp_path / "killed" / "scratch").exists()


@pytest.mark.slow
def test_processes_change_no_bit(tmp_path):
    for workers in (1, 2):
        drive(tiny.experiment(TOML, rounds=1, engine={"workers": workers}), out=tmp_path / str(workers))
    assert tiny.result(tmp_path / "1") == tiny.result(tmp_path / "2")


# --- privacy -----------------------------------------------------------------------------------------------------------

# all images in every batch: the accountant is quick with it
PRIVATE = {"start": "noise", "privacy_epsilon": 20.0, "privacy_delta": 1e-3, "expert_batch": 64}


def test_a_private_client_says_what_it_spent():
    pytest.importorskip("opacus")
    algorithm = make(**PRIVATE)
    (only,) = run(algorithm)
    assert not only.failures
    for client, site in tiny_sites().items():
        told = only.figures["clients"][client]["privacy"]
        n = len(site.train)
        assert n <= 64
        assert told["epsilon"] == epsilon_of(noise=told["noise"], rate=1.0, steps=2 * 3, delta=1e-3)
        assert 0.998 * 20 <= told["epsilon"] <= 20
        assert told["delta"] == 1e-3
    numbers = sent(make(**{**PRIVATE, "expert_batch": 8})).numbers
    steps = 2 * 3 * -(-len(tiny_sites()["c00"].train) // 8)
    rate = 8 / len(tiny_sites()["c00"].train)
    assert numbers["epsilon"] == epsilon_of(noise=numbers["noise"], rate=rate, steps=steps, delta=1e-3)
    plain = sent(make(start="noise", expert_batch=64))
    assert "epsilon" not in plain.numbers
    private = sent(algorithm)
    assert not torch.equal(private.groups["synthetic"]["images"], plain.groups["synthetic"]["images"])
    assert torch.equal(private.groups["synthetic"]["labels"], plain.groups["synthetic"]["labels"])
    (remark,) = algorithm.remarks(1)
    assert "not its validation images" in remark
    assert make().remarks(1) == ()


def test_only_private_experts_see_training_images(monkeypatch):
    """With the experts held fast, other training images of as many and of the same classes lead to the same reply."""
    pytest.importorskip("opacus")
    site = tiny_sites()["c00"]
    experts = sending.train_experts(
        WORLD.architecture, site.train, Recipe(3, 0.1, 8), count=2, precision="float32", seed=Seed.root(5)
    )
    asked = []

    def fixed(architecture, shard, recipe, *, privacy, **more):
        asked.append(privacy)
        return experts

    monkeypatch.setattr(sending, "train_experts", fixed)
    other = replace(site, train=replace(site.train, images=255 - site.train.images))
    algorithm = make(**PRIVATE, privacy_clip=0.7)
    assert sent(algorithm, site=site).to_bytes() == sent(algorithm, site=other).to_bytes()
    assert asked[0].clip == 0.7
    assert asked[0].noise > 0
    assert sent(make(start="real"), site=site).to_bytes() != sent(make(start="real"), site=other).to_bytes()


def test_a_client_for_whom_delta_is_no_protection_fails():
    pytest.importorskip("opacus")
    (only,) = run(make(**{**PRIVATE, "privacy_delta": 0.06}))
    reasons = {failure.client: failure.reason for failure in only.failures}
    large = {client for client, site in tiny_sites().items() if len(site.train) * 0.06 >= 1}
    assert reasons.keys() == large
    assert large
    assert all("algorithm.privacy_delta = 0.06 allows one of the client's" in reason for reason in reasons.values())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"start": "real"}, "algorithm.start = 'real': images that begin from real ones are not private"),
        ({"start": "mean"}, "algorithm.start = 'mean'"),
        ({"start": "statistics"}, "algorithm.start = 'statistics'"),
        ({"distill_steps": 0}, "with algorithm.distill_steps = 0 a client sends the images that it would begin with"),
        ({"privacy_epsilon": 0.0}, "algorithm.privacy_epsilon"),
        ({"privacy_epsilon": 1e4}, "algorithm.privacy_epsilon"),
        ({"privacy_delta": 1.0}, "algorithm.privacy_delta"),
        ({"privacy_clip": 0.0}, "algorithm.privacy_clip"),
    ],
    ids=str,
)
def test_privacy_that_would_be_none_is_refused(options, sentence):
    pytest.importorskip("opacus")
    with pytest.raises(InputError) as caught:
        tiny.experiment({**TOML, **PRIVATE, **options}).build()
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_private_experts_are_refused_batch_norm_and_need_opacus(monkeypatch):
    pytest.importorskip("opacus")
    with pytest.raises(
        InputError, match=r"^model: a layer of the network learns from a whole batch, as BatchNorm does"
    ):
        tiny.experiment({**TOML, **PRIVATE}, model={"norm": "batch"}).build()
    tiny.experiment({**TOML, **PRIVATE}).build()
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(MissingExtra, match=r"pip install 'fedstill\[dp\]'"):
        tiny.experiment({**TOML, **PRIVATE}).build()
    tiny.experiment(TOML).build()


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"epsilon": None}, "does not say how private it is"),
        ({"noise": 0.0}, "does not say how private it is"),
        ({"delta": -1.0}, "does not say how private it is"),
        ({"noise": float("inf")}, "does not say how private it is"),
        ({"epsilon": float("nan")}, "does not say how private it is"),
        ({"epsilon": 21.0}, "it spent epsilon = 21 at delta = 0.001, which is beyond algorithm.privacy_epsilon = 20"),
        ({"delta": 0.5}, "beyond algorithm.privacy_epsilon = 20 at algorithm.privacy_delta = 0.001"),
    ],
)
def test_what_a_stranger_says_of_its_privacy_is_checked(numbers, words):
    pytest.importorskip("opacus")
    algorithm = make(**PRIVATE)
    state = algorithm.init(["c00", "c01"], DESK)
    good = sent(make(start="noise")).put({"epsilon": 19.9, "delta": 1e-3, "noise": 0.7})
    said = {name: value for name, value in {**good.numbers, **numbers}.items() if value is not None}
    outcome = algorithm.aggregate(state, [Reply("c00", good), Reply("c01", Bundle(good.groups, said))], DESK)
    assert [failure.client for failure in outcome.failures] == ["c01"]
    assert words in outcome.failures[0].reason


@pytest.mark.slow
def test_a_private_run_tells_its_epsilon_and_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    pytest.importorskip("opacus")
    experiment = tiny.experiment({**TOML, **PRIVATE, "expert_batch": 16}, rounds=1)
    drive(experiment, out=tmp_path / "straight")
    for line in tiny.rows(tmp_path / "straight")[0]["clients"]:
        assert 0 < line["privacy"]["epsilon"] <= 20
        assert line["privacy"]["noise"] > 0
    assert "by the clients’ own word their training images are differentially private" in (
        tmp_path / "straight" / "report.html"
    ).read_text(encoding="utf-8")
    taken, fit_as_is = [], fit

    def counted(*args, **more):
        taken.append(more["privacy"])
        if len(taken) == 4:  # the second client's second expert
            raise KeyboardInterrupt
        return fit_as_is(*args, **more)

    monkeypatch.setattr(experts_module, "fit", counted)
    with pytest.raises(KeyboardInterrupt):
        drive(experiment, out=tmp_path / "killed")
    drive(experiment, out=tmp_path / "killed", resume=True)
    assert all(each.noise > 0 for each in taken)
    assert tiny.result(tmp_path / "killed") == tiny.result(tmp_path / "straight")


# --- the server --------------------------------------------------------------------------------------------------------


def test_the_union_may_be_learned_at_the_clients_own_rate(monkeypatch):
    seen = []

    def watched(lesson, courses, desk):
        seen.extend(course.recipe for course in courses)
        return study(lesson, courses, desk)

    study = module.study
    monkeypatch.setattr(module, "study", watched)
    (only,) = run(make(global_lr="learned"))
    rates = [line["rate"] for line in only.figures["clients"].values()]
    assert seen[0].lr == pytest.approx(sum(rates) / 4)
    assert (seen[0].momentum, seen[0].decay, seen[0].drop) == (0.9, 5e-4, 0.1)


def overwritten(bundle, group, name, value):
    return bundle.put(**{group: {**bundle.groups[group], name: torch.full_like(bundle.groups[group][name], value)}})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b.drop("synthetic"), "'images' and 'labels' are due"),
        (lambda b: b.put(synthetic={**b.groups["synthetic"], "images": b.groups["synthetic"]["images"].half()}), "float16"),
        (lambda b: b.put(synthetic={name: t[:0] for name, t in b.groups["synthetic"].items()}), "is empty"),
        (lambda b: b.put(synthetic={name: torch.cat([t, t]) for name, t in b.groups["synthetic"].items()}), "more than 2 images"),
        (lambda b: b.put({"rate": -0.1}), "step size is -0.1"),
        (lambda b: Bundle(b.groups, {"examples": 3}), "step size is None"),
        (lambda b: b.drop("statistics"), "record of its distillation is damaged"),
        (lambda b: b.put(statistics={**b.groups["statistics"], "chosen": torch.tensor([9, 9])}), "is damaged"),
        (lambda b: b.put(statistics=Course().group()), "is damaged"),
        (lambda b: b.put({"rate": 1e308}), "step size is 1e+308"),
        (lambda b: overwritten(b, "synthetic", "images", 1e30), "1e+30 pixel ranges from mid-grey"),
        (lambda b: overwritten(b, "statistics", "checks", 7.0), "an accuracy is above 1"),
        (lambda b: b.put(statistics={**b.groups["statistics"], "losses": torch.ones(10**6).double()}), "longer than"),
        (lambda b: b.put(statistics={**b.groups["statistics"], "lengths": torch.ones(3000, 2).long()}), "longer than"),
    ],
)  # fmt: skip
def test_a_strangers_reply_is_checked(change, words):
    algorithm = make()
    state = algorithm.init(["c00", "c01"], DESK)
    good = sent(algorithm)
    outcome = algorithm.aggregate(state, [Reply("c00", good), Reply("c01", change(good))], DESK)
    assert [failure.client for failure in outcome.failures] == ["c01"]
    assert words in outcome.failures[0].reason
    assert set(outcome.state.members("synthetic")) == {"c00"}


def test_losses_beyond_all_sums_are_as_good_as_infinite():
    algorithm = make()
    good = sent(algorithm)
    bad = overwritten(good, "statistics", "losses", 1e308)
    outcome = algorithm.aggregate(algorithm.init(["c00"], DESK), [Reply("c00", bad)], DESK)
    assert not outcome.failures
    assert "not finite" in outcome.figures["clients"]["c00"]["attempts"][0]["ill"]


def test_a_search_by_the_union_trains_on_all_of_it_afterwards():
    (only,) = run(make(ipc=3, search="union", trials=3, at_once=2))
    found = only.figures["search"]
    assert len(found) == 3
    leader = max((each for each in found if each["state"] == "finished"), key=lambda each: each["value"])
    assert only.figures["recipe"]["global_lr"] == leader["params"]["lr"]
    assert only.figures["recipe"]["global_optimiser"] == leader["params"]["optimiser"]
    (again,) = run(make(ipc=3, search="union", trials=3, at_once=2))
    assert again.state.to_bytes() == only.state.to_bytes()


def test_what_is_held_out_is_of_every_class_that_has_two():
    labels = torch.tensor([0] * 10 + [1] * 2 + [2])
    union = Shard(torch.arange(13.0).reshape(13, 1, 1, 1), labels, WORLD.classes, WORLD.normalisation)
    kept, held = held_out(union, 0.2, Seed.root(0))
    assert held.histogram() == [2, 1, 0]
    assert kept.histogram() == [8, 1, 1]
    assert sorted([*kept.images.flatten().tolist(), *held.images.flatten().tolist()]) == list(range(13))
    with pytest.raises(RunError, match=r"no class of the union has two images"):
        held_out(union.take([0, 11, 12]), 0.5, Seed.root(0))


WIDER = Choice("convnet", "wider", {"depth": 2, "width": 3})
SEARCH = {"search": "clients", "trials": 5, "at_once": 2, "distill_steps": 0}


def test_a_search_by_clients_asks_for_counts_and_ends_by_itself():
    algorithm = make(**SEARCH, global_models=(WIDER,))
    done = run(algorithm, until=9)
    assert [len(each.figures.get("search", ())) for each in done] == [0, 2, 2, 1]
    network = sum(tensor.nbytes for tensor in done[-1].state.groups["model"].values())
    assert [each.bytes_down for each in done] == [0, 8 * network, 8 * network, 4 * network]
    assert all(each.bytes_up <= 4 * 3 * 8 for each in done[1:])
    found = [trial for each in done for trial in each.figures.get("search", ())]
    leader = max(found, key=lambda each: each["value"])
    assert done[-1].figures["recipe"]["global_lr"] == leader["params"]["lr"]
    sites = tiny_sites()
    trained = algorithm.models(done[-1].state)["global"].module().eval()
    right = sum(int((trained(s.validation.inputs()).argmax(1) == s.validation.labels).sum()) for s in sites.values())
    assert right / sum(len(s.validation) for s in sites.values()) == pytest.approx(leader["value"])
    for each in done[:-1]:  # others have learned nothing yet
        assert set(algorithm.models(each.state)) == {"global"}
    assert set(algorithm.models(done[-1].state)) == {"global", "wider"}
    assert algorithm.task(done[-1].state) is None


def test_too_few_rounds_for_a_search_are_said_before_it():
    (remark,) = make(**SEARCH).remarks(3)
    assert "needs 4 rounds for 5 trials" in remark
    assert make(**SEARCH).remarks(4) == ()


def test_what_a_search_by_clients_cannot_use_is_refused_before_a_client_works(tmp_path):
    table = tiny.table({"name": "oneshot", **SEARCH}, partition={"validation": 0.0})
    with pytest.raises(InputError, match="search = 'clients': no client keeps validation images"):
        tiny.Experiment.from_table(table).build()


def test_a_search_that_was_interrupted_goes_on_to_the_same_bits():
    algorithm = make(**SEARCH)
    straight = run(algorithm, until=9)
    stored = Bundle.from_bytes(straight[1].state.to_bytes())
    rest = run(algorithm, until=9, start=2, state=stored)
    assert rest[-1].state.to_bytes() == straight[-1].state.to_bytes()


def test_a_search_by_clients_needs_validation_images():
    sites = {name: replace(site, validation=site.train.take([])) for name, site in tiny_sites().items()}
    first, second = run(make(**SEARCH), sites, until=2)
    assert first.aggregated
    assert not second.aggregated
    assert "no client of the round has validation images to choose by; set partition.validation" in second.withheld


@pytest.mark.parametrize(
    "numbers", [{}, {"validation_examples": 3.5}, {"correct:trial-00": 99.0}, {"correct:trial-01": -1.0}]
)
def test_counts_that_are_none_are_a_failure(numbers):
    algorithm = make(**SEARCH)
    state = run(algorithm)[-1].state.put({"round": 2})
    inbox = algorithm.broadcast(state, "c00")
    good = algorithm.score(inbox, tiny_sites()["c00"], Bundle(), DESK)
    bad = Bundle({}, {**good.numbers, **numbers} if numbers else {})
    outcome = algorithm.aggregate(state, [Reply("c00", good), Reply("c01", bad)], DESK)
    assert [failure.client for failure in outcome.failures] == ["c01"]


def test_a_training_that_diverges_is_a_failed_trial(monkeypatch):
    """And another takes its place in the round, until trials run out."""
    from fedstill.algorithms import choosing

    def failing(network, shard, recipe, **more):
        if recipe.optimiser == "adam":
            raise RunError("training diverged")
        return fit(network, shard, recipe, **more)

    monkeypatch.setattr(choosing, "fit", failing)
    done = run(make(**{**SEARCH, "trials": 6}), until=9)
    state = done[-1].state
    space = space_of(("optimiser", "lr"), Recipe(3, 0.1, 1))
    trials = decoded(space, state.groups["statistics:done"]["trials"])
    assert len(trials) == 6
    assert {trial.state for trial in trials if trial.params["optimiser"] == "adam"} <= {"failed"}
    assert not len(state.groups[AT_WORK]["trials"])
    monkeypatch.setattr(choosing, "fit", lambda *a, **k: (_ for _ in ()).throw(RunError("training diverged")))
    with pytest.raises(RunError, match=r"diverged in all 2 trials of the search"):
        run(make(**{**SEARCH, "trials": 2}))


def test_trials_are_rows_of_numbers():
    base = Recipe(epochs=100, lr=0.1, batch=8)
    space = space_of(("optimiser", "lr", "epochs", "augmentation"), base)
    trials = [
        Trial({"optimiser": "adam", "lr": 0.003, "epochs": 40, "augmentation": False}, "finished", 0.25),
        Trial({"optimiser": "sgd", "lr": 0.5, "epochs": 100, "augmentation": True}, "failed"),
    ]
    assert decoded(space, encoded(space, trials)) == trials
    assert decoded(space, encoded(space, [])) == []
    assert recipe_of(base, trials[0].params) == replace(base, optimiser="adam", lr=0.003, epochs=40)


# --- in an experiment --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"latest": 9}, "algorithm.latest = 9: a student that starts after 8 epochs and makes 1 needs experts of 9"),
        ({"start": "draw"}, "pixels alone draw nothing but noise"),
        ({"generator": "digits"}, "images of the prior 'digits' begin where it draws them"),
        ({"space": 3}, "the generator 'pixels' has spaces 0 to 0"),
        ({"augmentation": "colour"}, "algorithm.augmentation"),
        ({"expert_augmentation": "colour"}, "algorithm.expert_augmentation"),
        ({"search": "union", "search_over": []}, "algorithm.search_over = []: name at least one"),
        ({"search": "union", "search_over": ["lr", "lr"]}, "and none twice"),
        ({"global_models": [{"name": "convnet", "label": "trial-x"}]}, "would be taken for a trial"),
        ({"search": "unoin"}, "did you mean 'union'?"),
        ({"global_lr": "learnt"}, "algorithm.global_lr"),
        ({"distill_steps": -1}, "must be at least 0"),
    ],
    ids=str,
)
def test_wrong_options_are_answered_in_one_sentence(options, sentence):
    with pytest.raises(InputError) as caught:
        tiny.experiment({**TOML, **options}).build()
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_dry_run_multiplies_what_a_node_does():
    few = estimate(tiny.experiment(TOML, rounds=4))
    many = estimate(tiny.experiment({**TOML, "experts": 10**5, "distill_steps": 10**6, "judges": 10**4}, rounds=4))
    assert few.rounds == 1
    assert many.seconds["clients"] > 1000 * few.seconds["clients"]


def test_a_dry_run_knows_the_rounds_of_a_search():
    table = {"name": "oneshot", **SEARCH, "global_epochs": 3}
    found = estimate(tiny.experiment(table, rounds=4))
    assert found.rounds == 4
    assert found.bytes_down > 0


@pytest.mark.slow
def test_a_run_that_is_over_is_finished_whatever_rounds_it_was_given(tmp_path):
    from fedstill.sweep.state import look

    experiment = tiny.experiment({**TOML, "distill_steps": 0}, rounds=4)
    done = drive(experiment, out=tmp_path)
    assert done.rounds == 1
    assert look(tmp_path, experiment).finished
    group = Bundle.open(tmp_path / "synthetic" / "round-0001.safetensors").groups
    assert set(next(iter(group.values()))) == {"images", "labels", "rate"}
