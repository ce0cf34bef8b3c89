"""The page in a browser: headless Chromium, light and dark, wide and narrow, on paper."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fedstill.report import write_report
from fedstill.report.html import render
from rundirs import write_synthetic
from runs_fixture import Made, write_comparison
from sample_page import page

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    # a page that asks for anything at all fails loudly, and asks nobody
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
WIDE, NARROW = 1200, 400

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome on PATH: apt-get install chromium"),
]

# The frame's own script looks, and tells the window around it, whose DOM is printed.
PROBE = """
const said = [];
const tell = async () => {
  const $ = (selector) => document.querySelector(selector);
  const root = document.documentElement;
  const result = {
    width: innerWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    overflow: root.scrollWidth - root.clientWidth,
    wider: [...document.querySelectorAll("body *")].filter((it) => it.getBoundingClientRect().right > innerWidth + 1
      && !it.closest(".scroll, .plot, .skip, .aside")).map((it) => it.outerHTML.slice(0, 90)),
    paper: getComputedStyle(document.body).backgroundColor,
  };
  const [plot, other] = document.querySelectorAll(".chart .plot");
  plot.focus();
  for (const key of ["ArrowRight", "ArrowRight", "ArrowDown"])
    plot.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  result.readout = plot.querySelector(".readout").textContent;
  const line = other.querySelector("." + $(".switch").classList[1].replace("switch-", ""));
  result.before = getComputedStyle(line).display;
  $(".switch").click();
  result.after = getComputedStyle(line).display;
  $(".switch").click();
  const slider = $(".slider input");
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  result.slider = [slider.getAttribute("aria-valuetext"), $(".album > .sheet").checkVisibility()];
  const found = await axe.run(document, { resultTypes: ["violations"] });
  result.axe = found.violations.map((it) => [it.impact, it.id, it.nodes.map((node) => node.target.join(" "))]);
  return result;
};
addEventListener("load", () => tell().catch((error) => ({ error: String(error) }))
  .then((result) => parent.postMessage(JSON.stringify(result), "*")));
"""
OUTSIDE = """<!doctype html><title>probe</title><body style="margin:0"><pre id="probe"></pre>
<script>addEventListener("message", (event) => { document.getElementById("probe").textContent = event.data; });</script>
<iframe src="page.html" style="border:0;width:{width}px;height:1000px"></iframe>"""


@dataclass(frozen=True)
class Look:
    """How the page is opened."""

    width: int
    dark: bool = False


LOOKS = {"light": Look(WIDE), "dark": Look(WIDE, dark=True), "telephone": Look(NARROW)}


def chromium(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    return subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What the page wrote to the console; what a policy refuses is written there too."""
    return [line for line in done.stderr.splitlines() if ":CONSOLE" in line or "Content Security Policy" in line]


@cache
def axe() -> str:
    """The rules' script. Its package would start a browser of its own, so the file alone is used."""
    found = find_spec("axe_core_python")
    if found is None or found.origin is None:
        pytest.skip("needs axe-core-python, of the extra dev")
    return (Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8")


def free(text: str) -> str:
    """Without the policy that keeps it from asking and from running what is not its own."""
    text, removed = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert removed == 1
    return text


def asked(folder: Path, text: str) -> list[str]:
    """Addresses of a network that a page asks for. What the browser asks for on its own account has no origin."""
    file, log = folder / "page.html", folder / "net.json"
    file.write_text(text, encoding="utf-8")
    chromium(folder, f"--log-net-log={log}", "--virtual-time-budget=3000", "--dump-dom", file.as_uri())
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    return [
        event["url"]
        for event in events
        if event.get("initiator", "not an origin") != "not an origin"
        and not event["url"].startswith(("file:", "data:", "chrome:"))
    ]


def probed(folder: Path, look: Look, text: str) -> dict[str, Any]:
    """What the probe found on a copy that may run it."""
    (folder / "page.html").write_text(free(text).replace("</body>", f"<script>{axe()}\n{PROBE}</script></body>"))
    (folder / "probe.html").write_text(OUTSIDE.replace("{width}", str(look.width)))
    done = chromium(
        folder,
        f"--blink-settings=preferredColorScheme={0 if look.dark else 1}",
        f"--window-size={WIDE},1000",
        "--virtual-time-budget=30000",
        "--dump-dom",
        (folder / "probe.html").as_uri(),
    )
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None
    assert found[1], "\n".join(complaints(done))
    return dict(json.loads(html.unescape(found[1])))


def sound(found: dict[str, Any], look: Look) -> None:
    """What holds of every page that has switches and an album."""
    assert "error" not in found, found
    assert (found["width"], found["dark"]) == (look.width, look.dark)
    assert found["paper"] == ("rgb(19, 21, 23)" if look.dark else "rgb(253, 253, 251)")
    assert (found["overflow"], found["wider"]) == (0, [])
    assert found["readout"]
    assert (found["before"], found["after"]) == ("inline", "none")
    assert found["slider"] == ["round 1", True]
    assert [violation for violation in found["axe"] if violation[0] in ("serious", "critical")] == []


@pytest.fixture(scope="module")
def text() -> str:
    return render(page())


@pytest.mark.parametrize("name", LOOKS)
def test_page_is_readable_and_usable(tmp_path: Path, text: str, name: str) -> None:
    look = LOOKS[name]
    found = probed(tmp_path, look, text)
    sound(found, look)
    # the second point of the first series, then the same round of the second
    assert re.fullmatch(r"FedDGM, resnet18round 2: 55\.\d\W±\W2\.0\W%", found["readout"])


def test_page_of_runs_is_readable_on_a_telephone(tmp_path: Path) -> None:
    made = {
        "feddgm": Made(method="feddgm", distils=True, gradients=True, evaluated=True),
        "feddgm-f0": Made(method="feddgm", settings={"algorithm": {"name": "feddgm", "space": 0}}, distils=True),
        "fedavg": Made(method="fedavg", models=("global",)),
    }
    runs = write_comparison(tmp_path, made, seeds=(0, 1))
    for number in (1, 3):
        write_synthetic(runs[0] / "synthetic" / f"round-{number:04}.safetensors", ["c00", "c01"], size=8)
    out = tmp_path / "report.html"
    write_report(runs, out)
    sound(probed(tmp_path, LOOKS["telephone"], out.read_text(encoding="utf-8")), LOOKS["telephone"])


def test_page_complains_of_nothing(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(render(replace(page(), live=600)), encoding="utf-8")
    done = chromium(tmp_path, "--virtual-time-budget=3000", "--dump-dom", file.as_uri())
    assert complaints(done) == []
    # the script ran under its policy, and added its readouts
    assert done.stdout.count('class="readout"') == done.stdout.count('class="plot"') > 0


def test_page_asks_nobody(tmp_path: Path, text: str) -> None:
    assert asked(tmp_path, free(text)) == []  # it does not even try to


def test_a_page_that_asks_would_be_found_out(tmp_path: Path) -> None:
    assert asked(tmp_path, '<img src="http://192.0.2.1/x.png">') == ["http://192.0.2.1/x.png"]


def test_page_prints(tmp_path: Path, text: str) -> None:
    file, pdf = tmp_path / "page.html", tmp_path / "page.pdf"
    file.write_text(text, encoding="utf-8")
    done = chromium(tmp_path, f"--print-to-pdf={pdf}", "--no-pdf-header-footer", file.as_uri())
    assert complaints(done) == []
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 12
