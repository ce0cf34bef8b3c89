"""Run experiment files over seeds and lay the results side by side: a Markdown table and one page.

    python experiments/compare.py experiments/digits/*.toml --seeds 0 1 2 --rounds 1 3 5 --out runs/digits

    python experiments/compare.py experiments/digits/feddgm.toml --vary algorithm.ipc=1,2,5,10 --out runs/ipc

A run that is done is not done again; one that was interrupted is resumed; one of other settings is refused. ``--set`` goes
to every file, as for ``fedstill run``; ``--vary`` runs every file once for each value, an ablation.
The table holds mean ± sample standard deviation over seeds of the test accuracy in %, after the rounds asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

from fedstill import Experiment, drive  # noqa: E402 - the environment comes first
from fedstill.report import write_report  # noqa: E402


def run(file: Path, name: str, seed: int, out: Path, overrides: list[str]) -> Path:
    folder = out / f"{name}-{seed}"
    experiment = Experiment.read(file, [f"seed={seed}", *overrides])
    # resuming a run that is done does nothing, and refuses one that was made with other settings
    drive(experiment, out=folder, resume=(folder / "experiment.toml").exists())
    return folder


def variants(stem: str, vary: str | None) -> Iterator[tuple[str, list[str]]]:
    """(name, overrides) for each value of ``KEY=VALUE,VALUE,...``; the file as it is where nothing is varied."""
    if vary is None:
        yield stem, []
        return
    key, _, values = vary.partition("=")
    for value in values.split(","):
        yield f"{stem}-{key.rpartition('.')[2]}-{value}", [f"{key}={value}"]


def rows(folders: dict[str, list[Path]], rounds: list[int]) -> Iterator[str]:
    yield f"| method | model | {' | '.join(f'round {number}' for number in rounds)} | MB sent by round {rounds[-1]} |"
    yield f"|---|---|{'---|' * (len(rounds) + 1)}"
    for method, runs in folders.items():
        lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
        sent = sum(row["bytes_up"] + row["bytes_down"] for row in lines[0][: rounds[-1]]) / 1e6
        for model in lines[0][0]["accuracy"]:
            cells = []
            for number in rounds:
                values = [100 * run[number - 1]["accuracy"][model] for run in lines if len(run) >= number]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "–")
            yield f"| {method} | {model} | {' | '.join(cells)} | {sent:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", nargs="+", type=int, default=[1, 3, 5], help="which rounds the table shows")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--vary", metavar="KEY=VALUE,VALUE,...")
    options = parser.parse_args()
    folders: dict[str, list[Path]] = {}
    for seed in options.seeds:
        for file in options.files:
            for name, more in variants(file.stem, options.vary):
                folders.setdefault(name, []).append(run(file, name, seed, options.out, [*options.set, *more]))
                print(f"{name}, seed {seed}: done", flush=True)
    table = "\n".join(rows(folders, options.rounds))
    (options.out / "table.md").write_text(table + "\n", encoding="utf-8")
    write_report([run for runs in folders.values() for run in runs], options.out / "report.html")
    print(table)


if __name__ == "__main__":
    main()
