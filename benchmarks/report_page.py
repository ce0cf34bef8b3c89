"""Time and size of the page of many long runs: reading, building, drawing.

    python benchmarks/report_page.py --runs 20 --rounds 100 --clients 57

The house's limits for these: 20 seconds and 10 MB. The runs are made up, in a temporary folder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from rundirs import write_synthetic
from runs_fixture import Made, write_full_run

METHODS = ("feddgm", "prioronly", "fedavg", "centralised")


def write(folder: Path, options: argparse.Namespace) -> list[Path]:
    """``options.runs`` runs: methods, then seeds."""
    runs = []
    for index in range(options.runs):
        method, seed = METHODS[index % len(METHODS)], index // len(METHODS)
        distils = method in ("feddgm", "prioronly")
        made = Made(
            method=method,
            models=("surrogate", "resnet18") if distils else ("global",),
            rounds=options.rounds,
            clients=options.clients,
            classes=10,
            examples=1000,
            distils=distils,
            gradients=distils,
            evaluated=method == "feddgm",
        )
        run = write_full_run(folder / f"{method}-{seed}", made, seed=seed)
        if distils and options.images:
            names = [f"c{number:02}" for number in range(options.clients)]
            for number in sorted({1, options.rounds // 2, options.rounds}):
                write_synthetic(
                    run / "synthetic" / f"round-{number:04}.safetensors", names, seed=number, size=32, channels=3
                )
        runs.append(run)
    return runs


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--clients", type=int, default=57)
    parser.add_argument("--images", action=argparse.BooleanOptionalAction, default=True, help="distilled images too")
    parser.add_argument("--out", type=Path, help="keep the page there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = write(Path(folder), options)
        size = sum((run / "metrics.jsonl").stat().st_size for run in runs)
        print(
            f"{len(runs)} runs, {options.rounds} rounds, {options.clients} clients: {size / 1e6:.1f} MB of metrics.jsonl"
        )
        marks = [_now()]
        from fedstill.report.page import build
        from fedstill.report.runs import read_run

        read = [read_run(run) for run in runs]
        marks.append(_now())
        page = build(read)
        marks.append(_now())
        from fedstill.report.html import render

        html = render(page)
        marks.append(_now())
        print(f"{'step':8} {'wall s':>8} {'CPU s':>8}")
        spans = [*pairwise(marks), (marks[0], marks[-1])]
        for step, (before, after) in zip(("read", "build", "draw", "all"), spans, strict=True):
            print(f"{step:8} {after[0] - before[0]:8.2f} {after[1] - before[1]:8.2f}")
        print(f"page: {len(html.encode()) / 1e6:.2f} MB")
        if options.out is not None:
            options.out.write_text(html, encoding="utf-8")


if __name__ == "__main__":
    main()
