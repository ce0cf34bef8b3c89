from __future__ import annotations

import base64
import io
import json
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

from fedstill.errors import InputError
from fedstill.generators.files import read_card, save_prior
from fedstill.generators.style import StyleGenerator, StyleOptions
from fedstill.report import write_report
from fedstill.report.groups import Point, gather
from fedstill.report.pictures import albums
from fedstill.report.runs import read_run
from fedstill.report.verdict import BETTER, LEVEL, _compared, verdict
from fedstill.report.words import count, duration, percent, size
from fedstill.seeds import Seed
from rundirs import write_run, write_synthetic

GAP = "\N{NARROW NO-BREAK SPACE}"
VOID = {"meta", "link", "img", "br", "path", "use", "circle", "rect"}


class _Page(HTMLParser):
    """Every tag closes what it opened; ids and addresses are kept."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words += data + " "


def page(tmp_path: Path, *runs: Path) -> str:
    out = tmp_path / "report.html"
    write_report(runs, out)
    return out.read_text(encoding="utf-8")


def sentence(*runs: Path) -> str:
    groups, _ = gather([read_run(run) for run in runs])
    return verdict(groups).replace(GAP, " ")


def edit(path: Path, **changes: Any) -> None:
    """Change the first line of a metrics file."""
    first, *rest = path.read_text().splitlines(keepends=True)
    path.write_text(json.dumps(json.loads(first) | changes) + "\n" + "".join(rest))


def change(run: Path, old: str, new: str) -> Path:
    """Alter the experiment of a run's folder."""
    toml = run / "experiment.toml"
    text = toml.read_text()
    assert old in text
    toml.write_text(text.replace(old, new))
    return run


@pytest.fixture
def comparison(tmp_path: Path) -> list[Path]:
    runs = []
    for seed, shift in enumerate((-0.01, 0.0, 0.01)):
        curves = {
            "feddgm": {"surrogate": [0.5, 0.7, 0.84], "resnet18": [0.4, 0.6, 0.7]},
            "fedavg": {"global": [0.3, 0.5, 0.64]},
            "prioronly": {"surrogate": [0.5, 0.5, 0.5], "resnet18": [0.69, 0.69, 0.69]},
            "centralised": {"global": [0.9, 0.95, 0.97]},
        }
        for method, its in curves.items():
            moved = {name: [value + shift for value in curve] for name, curve in its.items()}
            folder = tmp_path / f"{method}-{seed}"
            runs.append(write_run(folder, method=method, seed=seed, curves=moved, matching=method == "feddgm"))
    return runs


def test_page_is_whole_and_alone(tmp_path: Path, comparison: list[Path]) -> None:
    pictured = write_run(tmp_path / "pictured", seed=7, images=True, matching=True)
    text = page(tmp_path, *comparison, pictured)
    parsed = _Page(text)
    assert parsed.open == []
    assert len(parsed.ids) == len(set(parsed.ids))
    assert all(address.startswith(("data:", "#")) for address in parsed.addresses)
    assert "script" not in parsed.tags
    # namespaces of SVG are names, not requests
    assert not re.findall(r"url\((?!#)|@import|https?://(?!www\.w3\.org/)", text)
    assert len(text) < 3_000_000


def test_same_files_same_page(tmp_path: Path, comparison: list[Path]) -> None:
    assert page(tmp_path, *comparison) == page(tmp_path, *comparison)


def test_a_readers_matplotlibrc_changes_nothing(tmp_path: Path, comparison: list[Path]) -> None:
    import matplotlib

    before = page(tmp_path, *comparison)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert page(tmp_path, *comparison) == before


def test_every_accuracy_is_on_the_page(tmp_path: Path, comparison: list[Path]) -> None:
    words = _Page(page(tmp_path, *comparison)).words
    for method in ("feddgm", "fedavg", "prioronly", "centralised"):
        rows = [
            [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            for run in comparison
            if run.name.startswith(method)
        ]
        for by_seed in zip(*rows, strict=True):
            for name in by_seed[0]["accuracy"]:
                values = [100 * row["accuracy"][name] for row in by_seed]
                mean, spread = statistics.mean(values), statistics.stdev(values)
                assert f"{mean:.1f}{GAP}±{GAP}{spread:.1f}{GAP}%" in words


def test_verdict_names_the_leader_and_the_ceiling(comparison: list[Path]) -> None:
    said = sentence(*comparison)
    assert said.startswith(
        "After 3 rounds, on the network that clients train (convnet), FedDGM leads with 84.0 ± 1.0 % of the test images "
        "labelled correctly, 20.0 points above FedAvg; "
    )
    assert "the ceiling, reaches 97.0 ± 1.0 %. Other networks: resnet18 reaches 70.0 % with FedDGM. " in said
    assert "is level on resnet18: 69.0 ± 1.0 % against 70.0 ± 1.0 %" in said
    assert said.count(". ") == 2
    assert said.endswith(".")


def test_verdict_gives_nobody_the_best_of_several_draws(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", curves={"surrogate": [0.6], "resnet18": [0.9], "vgg11": [0.8]}),
        write_run(tmp_path / "b", method="fedavg", curves={"global": [0.7]}),
    ]
    said = sentence(*runs)
    assert "FedAvg leads with 70.0 %" in said
    assert "10.0 points above FedDGM." in said
    assert said.endswith("Other networks: resnet18 reaches 90.0 % with FedDGM; vgg11 reaches 80.0 % with FedDGM.")


def test_verdict_ranks_one_network_alone(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", curves={"surrogate": [0.6], "resnet18": [0.7]}),
        write_run(tmp_path / "b", method="prioronly", curves={"surrogate": [0.5]}),
        change(
            write_run(tmp_path / "c", method="fedavg", curves={"global": [0.9]}), 'name = "convnet"', 'name = "vit"'
        ),
    ]
    said = sentence(*runs)
    assert "(convnet), FedDGM leads with 60.0 %" in said
    assert "Other networks: resnet18 reaches 70.0 % with FedDGM; vit reaches 90.0 % with FedAvg." in said


@pytest.mark.parametrize(
    ("prior", "said"),
    [
        (0.50, "does less well on surrogate: 50.0 % against 80.0 %"),
        (0.785, "does almost as well on surrogate: 78.5 % against 80.0 %"),
        (0.80, "is level on surrogate: 80.0 % against 80.0 %"),
        (0.81, "does better on surrogate: 81.0 % against 80.0 %"),
    ],
)
def test_verdict_is_honest_about_the_prior(tmp_path: Path, prior: float, said: str) -> None:
    feddgm = write_run(tmp_path / "a", curves={"surrogate": [0.7, 0.8]})
    control = write_run(tmp_path / "b", method="prioronly", curves={"surrogate": [prior, prior]})
    assert said in sentence(feddgm, control)


def test_verdict_says_where_the_generator_alone_does_better(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", curves={"surrogate": [0.8], "resnet18": [0.30], "vgg11": [0.6]}),
        write_run(tmp_path / "b", method="prioronly", curves={"surrogate": [0.79], "resnet18": [0.55], "vgg11": [0.2]}),
    ]
    assert sentence(*runs).endswith(
        "Beside FedDGM, the generator alone (PriorOnly) does better on resnet18: 55.0 % against 30.0 %; "
        "does almost as well on surrogate: 79.0 % against 80.0 %; does less well on vgg11: 20.0 % against 60.0 %."
    )


@given(ours=st.integers(0, 100), theirs=st.integers(0, 100), spread=st.integers(0, 10))
@settings(max_examples=200)
def test_almost_is_never_said_of_more(ours: int, theirs: int, spread: int) -> None:
    word = _compared(Point(theirs / 100, spread / 100, 3), Point(ours / 100, 0.0, 3))
    assert (word == BETTER) == (theirs - ours > spread)
    assert theirs <= ours or word in (BETTER, LEVEL)


def test_verdict_sets_every_feddgm_against_the_prior(tmp_path: Path) -> None:
    def variant(name: str, accuracy: float, alter: str) -> Path:
        return change(write_run(tmp_path / name, curves={"surrogate": [accuracy]}), 'name = "feddgm"', alter)

    runs = [
        variant("soft", 0.8, 'name = "feddgm"\nlabels = "soft"\nprior_samples = 50'),
        variant("hard", 0.4, 'name = "feddgm"\nlabels = "hard"\nprior_samples = 0'),
        write_run(tmp_path / "p", method="prioronly", curves={"surrogate": [0.6]}),
    ]
    said = sentence(*runs)
    assert "beside FedDGM (hard), it does better on surrogate: 60.0 % against 40.0 %" in said
    assert "Beside FedDGM (soft), the generator alone (PriorOnly) does less well on surrogate" in said
    assert said.count(". ") == 1


def test_verdict_takes_the_control_of_the_same_generator(tmp_path: Path) -> None:
    def variant(name: str, method: str, accuracy: float, generator: str) -> Path:
        run = write_run(tmp_path / name, method=method, curves={"surrogate": [accuracy]})
        return change(run, f'name = "{method}"', f'name = "{method}"\ngenerator = "{generator}"')

    runs = [
        variant("a", "feddgm", 0.7, "pixels"),
        variant("b", "prioronly", 0.6, "digits"),
        variant("c", "prioronly", 0.1, "pixels"),
    ]
    assert "(PriorOnly (generator pixels)) does less well on surrogate: 10.0 % against 70.0 %" in sentence(*runs)


def test_verdict_sees_no_lead_within_the_spread(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"{method}-{seed}", method=method, seed=seed, curves={"m": [base + shift]})
        for method, base in (("feddgm", 0.80), ("fedavg", 0.77))
        for seed, shift in enumerate((-0.04, 0.0, 0.04))
    ]
    assert "are level at" in sentence(*runs)


def test_verdict_says_when_fedavg_leads(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", curves={"surrogate": [0.6]}),
        write_run(tmp_path / "b", method="fedavg", curves={"global": [0.7]}),
    ]
    assert "After 1 round, on the network that clients train (convnet), FedAvg leads with 70.0 %" in sentence(*runs)


def test_verdict_compares_the_same_round(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", curves={"surrogate": [0.6, 0.65]}),
        write_run(tmp_path / "b", method="fedavg", curves={"global": [0.5, 0.55, 0.9]}),
    ]
    said = sentence(*runs)
    assert said.startswith("After 2 rounds, ")
    assert "FedDGM leads with 65.0 %" in said


def test_runs_that_differ_otherwise_are_told_apart(tmp_path: Path) -> None:
    plain = write_run(tmp_path / "a", settings="[extra]\nipc = 5")
    other = write_run(tmp_path / "b", settings="[extra]\nipc = 10")
    again = write_run(tmp_path / "c", settings="[extra]\nipc = 10")
    groups, notes = gather([read_run(run) for run in (plain, other, again)])
    assert [group.label for group in groups] == ["FedDGM (ipc 5)", "FedDGM (ipc 10)"]
    assert notes == ("c repeats the experiment and seed of b: it is not counted",)


def test_other_data_are_said_not_to_compare(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a")
    second = write_run(tmp_path / "b", method="fedavg", curves={"global": [0.5]})
    change(second, "alpha = 0.5", "alpha = 0.1")
    assert "not comparable" in page(tmp_path, first, second)


def test_namesakes_of_several_differences_go_by_the_experiments_name(tmp_path: Path) -> None:
    runs = [
        change(write_run(tmp_path / f"run-{ipc}", settings=f"[extra]\nipc = {ipc}\nspace = {ipc}"), "run-", "exp-")
        for ipc in (5, 10)
    ]
    assert [group.label for group in gather([read_run(run) for run in runs])[0]] == [
        "FedDGM (5)",
        "FedDGM (10)",
    ]
    change(runs[0], "exp-5", "exp")
    assert [group.label for group in gather([read_run(run) for run in runs])[0]] == ["FedDGM", "FedDGM (10)"]
    change(runs[1], "exp-10", "exp")
    assert [group.label for group in gather([read_run(run) for run in runs])[0]] == [
        "FedDGM (run-5)",
        "FedDGM (run-10)",
    ]


@pytest.mark.parametrize("kept", [True, False])
def test_page_says_what_the_prior_was_trained_on(tmp_path: Path, kept: bool) -> None:
    card = read_card("digits")
    file = tmp_path / "mine.safetensors"
    if kept:
        options = StyleOptions(channels=1, size=16, classes=2, width=4, z_width=2, w_width=2)
        own = {"trained_on": "photographs of <b>clouds</b>", "data_sha256": "0123456789abcdef"}
        with Seed.root(0).scope():
            save_prior(file, StyleGenerator(options), own)
    runs = [write_run(tmp_path / "a", method="fedavg", curves={"global": [0.5]})]
    for name in ("digits", str(file)):
        run = write_run(tmp_path / f"f-{Path(name).stem}")
        runs.append(change(run, 'name = "feddgm"', f'name = "feddgm"\ngenerator = "{name}"'))
    words = _Page(page(tmp_path, *runs)).words
    assert f"digits, trained on: {card['trained_on']}; data hash {card['data_sha256'][:12]}" in words
    if kept:
        assert "mine.safetensors, trained on: photographs of <b>clouds</b>; data hash 0123456789ab" in words
    else:
        assert "mine.safetensors, trained on: unknown" in words


def test_page_shows_the_options_of_a_flower_partitioner(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    change(run, 'kind = "kclass"', 'kind = "flwr:DirichletPartitioner"\noptions = {alpha = 0.125}')
    assert "flwr:DirichletPartitioner, clients 10, alpha 0.125" in _Page(page(tmp_path, run)).words


def test_images_mark_classes_not_held(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", images=True)
    text = page(tmp_path, run)
    assert text.count("data:image/png;base64,") == 20
    assert text.count("not held by c00") == 2 * 8
    # matched against the partition, not against the position in the list
    assert 'title="5: not held by c00"' in text
    assert 'title="1: not held by c00"' not in text


def test_images_are_those_of_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    images = np.zeros((3, 1, 2, 2), np.float32)
    images[0], images[1], images[2] = 0.25, 2.0, np.nan
    tensors = {"synthetic:c04/images": images, "synthetic:c04/labels": np.array([7, 5, 5])}
    (run / "synthetic").mkdir()
    save_file(tensors, run / "synthetic" / "round-0002.safetensors")
    (album,) = albums({"a": read_run(run)})
    (sheet,) = album.sheets
    (tile,) = sheet.tiles
    assert (sheet.number, tile.rows) == (2, (("5", True), ("7", False)))
    assert tile.source is not None
    picture = Image.open(io.BytesIO(base64.b64decode(tile.source.partition(",")[2])))
    pixels = np.asarray(picture)
    assert pixels.shape == (5, 5, 2)
    assert pixels[0, 0].tolist() == [255, 255]
    assert pixels[0, 3].tolist() == [0, 255]
    assert pixels[3, 0].tolist() == [64, 255]
    assert (pixels[2, :, 1] == 0).all()
    assert pixels[3, 3, 1] == 0


@pytest.mark.parametrize("damage", ["cut", "empty", "shape", "kind"])
def test_damaged_images_are_said(tmp_path: Path, damage: str) -> None:
    run = write_run(tmp_path / "a", images=True)
    file = run / "synthetic" / "round-0001.safetensors"
    if damage in ("shape", "kind"):
        images = np.zeros((3, 2, 4, 4), np.float32) if damage == "shape" else np.zeros((3, 1, 4, 4), np.int32)
        save_file({"synthetic:c00/images": images, "synthetic:c00/labels": np.zeros(3, np.int64)}, file)
    else:
        file.write_bytes(file.read_bytes()[:-100] if damage == "cut" else b"")
    text = page(tmp_path, run)
    assert "the file of its images is damaged" in text
    assert text.count("data:image/png") == 10


def test_page_stays_small(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"r{n}", settings=f"[extra]\nk = {n}", clients=12) for n in range(2)]
    for run in runs:
        clients = [f"c{number:02}" for number in range(12)]
        write_synthetic(run / "synthetic" / "round-0003.safetensors", clients, size=32, channels=3)
    text = page(tmp_path, *runs)
    assert len(text) < 3_000_000
    assert re.search(r"first \d of 10 a class", text)


def test_a_full_page_leaves_images_out_and_says_so(tmp_path: Path) -> None:
    (album,) = albums({"a": read_run(write_run(tmp_path / "a", images=True))}, budget=9_000)
    notes = [tile.note for sheet in album.sheets for tile in sheet.tiles]
    assert notes[-1].startswith("left out")
    assert not notes[0].startswith("left out")


def test_sick_clients_and_failures_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", matching=True)
    reason = "its matching loss rose from 0.9 to 1.7"
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    row["clients"][2]["matching"]["sick"] = reason
    edit(run / "metrics.jsonl", clients=row["clients"], failures=[{"client": "c02", "reason": reason}])
    words = _Page(page(tmp_path, run)).words
    assert f"c02 in round 1: {reason}" in words
    assert "30 distillations, 1 failed" in words
    assert "Clients left out" in words


def test_bytes_are_summed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", curves={"surrogate": [0.1] * 5})
    edit(run / "metrics.jsonl", bytes_up=2_000_000, bytes_down=3_000_000)
    words = _Page(page(tmp_path, run)).words
    assert size(2_000_000 + 4 * 1_204_000) in words
    assert size(5_000_000 + 4 * 2_408_000) in words


def test_unknown_is_never_zero(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    edit(run / "metrics.jsonl", bytes_up=None, peak_memory=None, accuracy={"surrogate": None})
    words = _Page(page(tmp_path, run)).words
    assert "–" in words
    groups, _ = gather([read_run(run)])
    assert groups[0].sent() == {}
    assert list(groups[0].curve("surrogate")) == [2, 3]


def test_hostile_names_are_text(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", matching=True)
    evil = "<script>alert(1)</script>$x_1$"
    edit(run / "metrics.jsonl", failures=[{"client": evil, "reason": evil}], seconds={evil: 1.0}, accuracy={evil: 0.5})
    partition = json.loads((run / "partition.json").read_text())
    partition["classes"][0] = evil
    (run / "partition.json").write_text(json.dumps(partition))
    assert "script" not in _Page(page(tmp_path, run)).tags


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="is not a run"):
            write_report([folder], tmp_path / "x.html")
    with pytest.raises(InputError, match="at least one run"):
        write_report([], tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


def test_a_cut_line_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"round": 4, "accur')
    assert "the last line of metrics.jsonl is cut or damaged" in page(tmp_path, run)
    assert len(read_run(run).rows) == 3


@pytest.mark.parametrize("name", ["experiment.toml", "metrics.jsonl", "partition.json", "summary.json"])
@pytest.mark.parametrize("damage", ["absent", "cut", "other", "bytes", "deep"])
def test_damage_gives_a_page_that_says_so(tmp_path: Path, name: str, damage: str) -> None:
    run = write_run(tmp_path / "a", matching=True)
    path = run / name
    if damage == "absent":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3 - 1])
    elif damage == "bytes":
        path.write_bytes(b"\xff\xfe\x00\x01" * 9)
    elif damage == "deep":
        path.write_text("[" * 100_000)
    else:
        path.write_text('{"finished": false, "round": "three", "histogram": 3}')
    words = _Page(page(tmp_path, run)).words
    assert name in words or "not finished" in words


def test_a_lost_round_and_an_absurd_number_are_survived(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", curves={"surrogate": [0.1, 0.2, 0.3]})
    edit(run / "metrics.jsonl", round=10**15, bytes_up=10**400, accuracy={"surrogate": 10**400})
    assert f"metrics.jsonl lacks rounds 4 to {10**15 - 1}" in read_run(run).missing
    assert "lacks round 1." in _Page(page(tmp_path, run)).words


def _json() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8)
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    )


KEYS = ("accuracy", "validation", "bytes_up", "seconds", "peak_memory", "clients", "failures", "aggregated", "newer")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(KEYS), _json(), max_size=4))
def test_values_of_any_kind_give_a_page(tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("any")
    run = write_run(folder / "run", matching=True)
    edit(run / "metrics.jsonl", **changes)
    assert _Page(page(folder, run)).open == []


def test_a_run_without_a_round_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", curves={})
    words = _Page(page(tmp_path, run)).words
    assert "no round has been finished" in words
    assert "there is no result to state" in words


@pytest.mark.parametrize(
    ("got", "wanted"),
    [
        (percent(0.8434), "84.3 %"),
        (percent(None), "–"),
        (size(0), "0 B"),
        (size(1_204_000), "1.2 MB"),
        (duration(83.4), "1 min 23 s"),
        (duration(7384), "2 h 03 min"),
        (duration(0.25), "0.25 s"),
        (count(1234567), "1 234 567"),
    ],
)
def test_words(got: str, wanted: str) -> None:
    assert got.replace(GAP, " ") == wanted
