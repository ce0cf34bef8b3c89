"""What the page says of an audit is what ``audit.json`` says; its pictures are on the page only where they are asked for."""

from __future__ import annotations

import base64
import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fedstill.cli import invoke
from fedstill.report.audited import read_audited
from fedstill.report.export import write_csv
from fedstill.report.groups import gather
from fedstill.report.html import render
from fedstill.report.leaks import leaks
from fedstill.report.page import build, called
from fedstill.report.parts import Grid, Lines, Page, Section, Text, charts, grids, walk
from fedstill.report.runs import read_run
from rundirs import write_run


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value / 2, "high": min(1.0, value * 1.25)}


def attack(area: float, *, bound: dict[str, Any] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "members": 180,
        "others": 180,
        "auc": estimate(area),
        "tpr": {"0.01": estimate(0.1), "0.001": {"missing": "a false-positive rate of 0.1 % needs 5000 non-members"}},
        "roc": {"fpr": [0.0, 0.005, 0.02, 0.5, 1.0], "tpr": [0.0, 0.05, 0.1, 0.8, 1.0]},
        "targets": {"targets": 3, "auc": {"mean": 0.7, "deviation": 0.02}},
    }
    return found if bound is None else found | {"bound": bound}


def audit(*, claim: bool = False) -> dict[str, Any]:
    bound = {
        "shown": 0.25,
        "exceeds": False,
        "rates": {
            "0.01": {
                "fpr_high": 0.02,
                "tpr": 0.1,
                "tpr_low": 0.06,
                "allowed": 0.03,
                "allowed_exchanged": 0.075,
                "shown": 0.2,
            },
            "0.1": {"missing": "too few"},
        },
    }
    own = bound if claim else None
    view = {
        "view": "final:global",
        "client": None,
        "accuracy": 0.967,
        "member_accuracy": 1.0,
        "other_accuracy": 0.95,
        "shadows": 4,
        "attacks": {
            "lira_online": attack(0.73, bound=own),
            "confidence": attack(0.55, bound=own),
            "density": {"missing": "no gradients"},
        },
    }
    if claim:
        view["claim"] = {"epsilon": 1.0, "delta": 1e-3}
    about = {
        name: {"title": title, "citation": f"{title} et al.", "assumptions": "It knows."}
        for name, title in (
            ("lira_online", "LiRA online"),
            ("confidence", "confidence"),
            ("density", "gradient density"),
        )
    }
    likeness = {
        "pairs": [0.9],
        "mean": 0.9,
        "higher": True,
        "others": 0.1,
        "others_best": 0.3,
        "class_mean": None,
        "p": 0.01,
    }
    return {
        "version": 1,
        "identities": {},
        "membership": {
            "method": "fedavg",
            "round": 2,
            "shadows": 4,
            "pool": {"members": 180, "others": 180, "not_in_play": 0},
            "about": about,
            "views": [view],
            "missing": {"distilled": "'fedavg' distils no images"},
        },
        "inversion": {
            "client": "c00",
            "round": 2,
            "source": "kept",
            "kind": "real",
            "steps": 600,
            "restarts": 1,
            "citation": "Geiping et al.",
            "assumptions": "It knows.",
            "cases": {
                "one": {"images": 1, "behind": 1, "against": {"real": {"measures": {"ssim": likeness}, "absent": {}}}},
                "sent": {"missing": "the message leaves the network as it was"},
            },
            "pictures": ["audit/inversion-one.png"],
        },
        "neighbours": {"nothing": "'fedavg' distils no images"},
        "attributes": {
            "round": 2,
            "readings": {
                "signs": {
                    "citation": "Wainakh et al.",
                    "assumptions": "It knows.",
                    "clients": {"c00": {}, "c01": {}},
                    "distance": 0.3,
                    "guess": 0.5,
                    "gain": 0.2,
                    "interval": None,
                }
            },
            "missing": {},
        },
    }


def run(folder: Path, found: Any, *, method: str = "fedavg") -> Path:
    made = write_run(folder, method=method, curves={"global": [0.5, 0.8]})
    (made / "audit.json").write_text(found if isinstance(found, str) else json.dumps(found))
    (made / "audit").mkdir()
    Image.new("L", (40, 20)).save(made / "audit" / "inversion-one.png")
    return made


def page(*runs: Path, **options: Any) -> Page:
    return build([read_run(each) for each in runs], **options)


def section(made: Page) -> Section:
    (found,) = (each for each in made.sections if each.key == "leaks")
    return found


def table(made: Page, key: str) -> Grid:
    (found,) = (grid for grid in grids(made) if grid.key == key)
    return found


def texts(made: Page) -> str:
    return " ".join(block.text for block in walk(made) if isinstance(block, Text))


def test_each_attack_has_its_table_its_source_and_what_its_attacker_knows(tmp_path: Path) -> None:
    made = page(run(tmp_path / "a", audit()))
    assert section(made).title == "What leaks"
    members = table(made, "leaks-1-membership")
    assert [cell.text for cell in members.rows[0]] == [
        "final:global: right of test 96.7\u202f%, members 100.0\u202f%, others 95.0\u202f%",
        "LiRA online",
        "0.730 (0.365 to 0.912)",
        "10.0 % (5.0 to 12.5)",
        "–",
        "0.700 ± 0.020",
    ]
    assert "Not attacked: 'fedavg' distils no images." in members.note
    who = table(made, "leaks-1-membership-who")
    assert [cell.text for cell in who.rows[0]] == ["LiRA online", "LiRA online et al.", "It knows."]
    assert [cell.text for cell in table(made, "leaks-1-inversion").rows[0]][3:] == [
        "0.900",
        "0.100",
        "0.300",
        "–",
        "0.010",
    ]
    assert "Not inverted, sent: the message leaves" in table(made, "leaks-1-inversion").note
    assert table(made, "leaks-1-attributes").rows[0][-1].text == "+0.200"
    assert "Nearest neighbours: not attacked: 'fedavg' distils no images." in texts(made)
    assert "No gradient density: no gradients." in texts(made)
    assert not any(grid.key.endswith("-bounds") for grid in grids(made))


def test_the_roc_has_two_logarithmic_axes_and_what_a_guarantee_allows(tmp_path: Path) -> None:
    plain, private = (page(run(tmp_path / str(claim), audit(claim=claim))) for claim in (False, True))
    for made, series in ((plain, 3), (private, 4)):
        (roc,) = (each for each in charts(made) if each.chart.key.startswith("leaks"))
        assert isinstance(roc, Lines)
        assert roc.x.log
        assert roc.y.log
        assert len(roc.traces) == series
        assert all(x > 0 and y > 0 for trace in roc.traces for x, y in zip(trace.xs, trace.ys, strict=True))
        assert "96.7" in roc.chart.caption
        assert f'id="chart-{roc.chart.key}"' in render(made)
    bounds = table(private, "leaks-1-membership-bounds")
    assert [cell.text for cell in bounds.rows[0]][2:] == [
        "1",
        "0.001",
        "10.0\u202f% of 7.5\u202f%",
        "–",
        "≥ 0.25",
        "no",
    ]


def test_pictures_of_training_images_are_on_the_page_only_where_they_are_asked_for(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", audit())
    picture = base64.b64encode((folder / "audit" / "inversion-one.png").read_bytes()).decode()
    without = render(page(folder))
    assert picture not in without
    assert f"not on this page: {folder / 'audit' / 'inversion-one.png'}" in without
    assert picture in render(page(folder, audit_pictures=True))
    out = tmp_path / "page.html"
    assert invoke(["report", str(folder), "--out", str(out)]) == 0
    assert picture not in out.read_text()
    assert invoke(["report", str(folder), "--out", str(out), "--audit-pictures"]) == 0
    assert picture in out.read_text()
    (folder / "audit" / "inversion-one.png").write_bytes(b"cut")
    assert "is not there, or is damaged" in render(page(folder, audit_pictures=True))


def test_several_runs_stand_in_one_table_with_the_reason_for_each_dash(tmp_path: Path) -> None:
    first, other = audit(), audit()
    other["neighbours"] = {
        "round": 2,
        "clients": 2,
        "spaces": {
            "pixels": {
                "images": 20,
                "gap": 0.02,
                "chance": [-0.1, 0.1],
                "p": 0.5,
                "closer": 0.5,
                "worst": [{"ratio": 1.1}],
                "nearest": {"ratio": 1.1, "chance": [0.61, 0.84]},
            }
        },
        "citation": "Platzer et al.",
        "assumptions": "It knows.",
        "pictures": [],
    }
    del other["membership"]
    runs = [
        run(tmp_path / "a", first),
        run(tmp_path / "b", other, method="fednova"),
        write_run(tmp_path / "c", method="fedprox"),
    ]
    made = page(*runs)
    lines = {row[0].text: [cell.text for cell in row[1:]] for row in table(made, "leaks").rows}
    assert list(lines) == ["FedAvg", "FedNova", "FedProx"]
    (a, b, c) = lines.values()
    assert (a[0], a[2], a[4], a[5], a[6], a[7]) == ("LiRA online", "0.730 (0.365 to 0.912)", "0.900", "–", "–", "none")
    assert (b[0], b[2], b[6]) == ("–", "–", "0.020")
    assert c[2:7] == ["–"] * 5
    assert "0.61 to 0.84" in render(page(tmp_path / "b"))
    said = texts(made)
    assert "neighbours: 'fedavg' distils no images." in said
    assert "membership: not made." in said
    assert "inversion: 'sent' was not inverted." in said
    assert "all: not audited." in said
    write_csv(made, called([read_run(each) for each in runs]), tmp_path / "csv")
    assert (tmp_path / "csv" / "leaks.csv").exists()


def test_runs_that_nobody_audited_have_no_section(tmp_path: Path) -> None:
    made = page(write_run(tmp_path / "a", method="fedavg"))
    assert not any(each.key == "leaks" for each in made.sections)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("{", "audit.json is damaged"),
        ("[]", "audit.json is damaged"),
        ({"version": 99}, "audit.json is of a format that this fedstill does not know (99): left out"),
        ({"membership": {}}, "audit.json is of a format that this fedstill does not know (None): left out"),
        ({"version": 1, "membership": {"views": 3}}, "'membership' in audit.json is damaged: it is left out"),
    ],
)
def test_what_cannot_be_read_is_named_and_left_out(found: Any, said: str, tmp_path: Path) -> None:
    made = page(run(tmp_path / "a", found))
    assert not any(each.key == "leaks" for each in made.sections)
    assert any(said in note for note in made.notes)


def test_junk_in_any_place_leaves_a_page(tmp_path: Path) -> None:
    """Every value of the file in turn is replaced by what it cannot be."""

    def places(value: Any) -> list[tuple[Any, Any]]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [place for key, each in items for place in ((value, key), *places(each))]

    folder = run(tmp_path / "a", audit())
    whole = audit(claim=True)
    whole_run, other = read_run(folder), read_run(write_run(tmp_path / "b", method="fedprox"))
    for index in range(len(places(whole))):
        for junk in (None, "x", [3], -1.5):
            found = copy.deepcopy(whole)
            holder, key = places(found)[index]
            holder[key] = junk
            (folder / "audit.json").write_text(json.dumps(found))
            damaged = replace(whole_run, audited=read_audited(folder / "audit.json", []))
            leaks(gather([damaged, other])[0], {id(damaged): "a", id(other): "b"}, pictures=False)
