"""A page of one block of every kind, made up: for tests of what draws and lays out pages."""

from __future__ import annotations

import base64
import io
import math
import random
from dataclasses import replace

import numpy as np
from PIL import Image

from fedstill.report.parts import (
    Album,
    Axis,
    Bars,
    Cell,
    Chart,
    Facts,
    Folded,
    Grid,
    Heat,
    Key,
    Legend,
    Lines,
    Mark,
    Page,
    Scatter,
    Section,
    Sheet,
    Style,
    Text,
    Tile,
    Trace,
    cell,
)

METHODS = ("FedDGM", "FedAvg", "PriorOnly", "Centralised")
CLASSES = tuple("0123456789")
CLIENTS = tuple(f"c{number:02}" for number in range(10))
ROUNDS = tuple(range(1, 11))
ACCURACY = Axis("test images labelled correctly", "share")


def grid(key: str, title: str = "A table") -> Grid:
    rows = tuple((cell(str(number)), Cell("84.3 %", 0.843), Cell("1.2 MB", 1.2e6)) for number in range(1, 9))
    return Grid(key, title, ("Round", "Accuracy", "Bytes"), rows)


def chart(key: str, title: str = "", caption: str = "") -> Chart:
    title = title or key.capitalize()
    return Chart(key, title, caption, f"{title}: a chart of made-up numbers; its table has them.", grid(key, title))


def traces(scale: float = 1.0, *, log: bool = False) -> tuple[Trace, ...]:
    found = []
    for index, method in enumerate(METHODS):
        for number, model in enumerate(("surrogate", "resnet18")[: 2 if index in (0, 2) else 1]):
            top = 0.92 - 0.12 * index - 0.05 * number if index < 3 else 0.97
            ys = [top * (1 - math.exp(-n / (2 + index))) for n in ROUNDS]
            xs = [10 ** (n / 3) * scale if log else n * scale for n in ROUNDS]
            spreads = [0.03 * math.exp(-n / 5) for n in ROUNDS]
            found.append(Trace(f"{method}/{model}", f"{method}, {model}", Style(index, number), xs, ys, spreads))
    return tuple(found)


def lines(key: str = "by-round", *, log: bool = False) -> Lines:
    mark = Mark("FedDGM/surrogate", "FedDGM as published 73.7 %", Style(0, 0), 0.737)
    return Lines(chart(key, "By round"), traces(log=log), Axis("round", "round", log), ACCURACY, (mark,))


def pareto() -> Scatter:
    draw = random.Random(5)
    points = tuple(
        Trace(f"{m}/surrogate", f"{m}, surrogate", Style(i), (10 ** (5 + 2 * draw.random()),), (0.6 + i / 12,), (0.02,))
        for i, m in enumerate(METHODS)
    )
    front = tuple(sorted((p.xs[0], p.ys[0]) for p in points))[:3]
    return Scatter(
        chart("pareto", "Accuracy against bytes"),
        points,
        Axis("bytes up and down", "bytes", True),
        ACCURACY,
        True,
        front,
    )


def cloud(points: int = 300) -> Scatter:
    draw = random.Random(3)
    found = tuple(
        Trace(
            f"class-{index}",
            f"class {index}",
            Style(index),
            tuple(draw.gauss(4 * math.cos(index), 1) for _ in range(points // 10)),
            tuple(draw.gauss(4 * math.sin(index), 1) for _ in range(points // 10)),
        )
        for index in range(10)
    )
    return Scatter(chart("tsne", "Features of the clients"), found, Axis(""), Axis(""))


def heat(rows: int = 10, columns: int = 10, key: str = "loss", *, share: bool = False) -> Heat:
    draw = random.Random(rows)
    values = tuple(
        tuple(
            None if draw.random() < 0.1 else draw.random() * (1 if share else 0.4 + column / 20)
            for column in range(columns)
        )
        for _ in range(rows)
    )
    return Heat(
        chart(key, "Matching loss by client and round"),
        tuple(f"c{number:02}" for number in range(rows)),
        tuple(str(number + 1) for number in range(columns)),
        values,
        "client",
        "round",
        "share" if share else "",
        ((1, 2), (3, 7)),
    )


def bars() -> Bars:
    parts = ("clients", "distil", "train", "server, rest", "evaluate")
    its = tuple(
        (method, tuple(30.0 * (index + 1) / (part + 1) for part in range(5))) for index, method in enumerate(METHODS)
    )
    return Bars(chart("time", "Time by phase", "Summed over rounds, mean over seeds."), parts, its, Axis("", "seconds"))


def tile(client: str, seed: int, *, classes: int = 10, columns: int = 5, side: int = 16) -> Tile:
    draw = np.random.default_rng(seed)
    pixels = (draw.random((classes * (side + 1) - 1, columns * (side + 1) - 1)) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    rows = tuple((name, index in (seed % 10, (seed + 1) % 10)) for index, name in enumerate(CLASSES[:classes]))
    return Tile(client, source, pixels.shape[1], pixels.shape[0], rows, "first 5 of 10 a class" if seed == 1 else "")


def album(key: str = "images", sheets: int = 4) -> Album:
    found = [
        Sheet(f"round {1 + 3 * n}", tuple(tile(client, n + i) for i, client in enumerate(CLIENTS[:6])))
        for n in range(sheets)
    ]
    found.insert(1, Sheet("round 2", (), "the file of its images is damaged"))
    return Album(key, "FedDGM, seed 0", "round", tuple(found))


def legend() -> Legend:
    keys = tuple(
        Key(trace.series, *trace.label.split(", "), trace.style, f"{100 * trace.ys[-1]:.1f} ± 1.2 %")
        for trace in traces()
    )
    return Legend(keys)


def results() -> Grid:
    """Every tone."""
    rows = (
        (cell("FedDGM"), Cell("91.2 ± 0.6 %", 0.912, 0.006, "best"), Cell("+4.3", 0.043, tone="gain"), cell("")),
        (
            cell("FedAvg"),
            Cell("80.1 ± 1.6 %", 0.801, 0.016),
            Cell("−2.1", -0.021, tone="loss"),
            Cell("sick", "sick", tone="sick"),
        ),
        (cell("FedDGM, published"), Cell("73.7 %", 0.737, tone="mute"), cell(""), cell("")),
    )
    return Grid(
        "results",
        "Accuracy after the last round",
        ("Method", "surrogate", "Against FedAvg", "State"),
        rows,
        note="Mean ± sample standard deviation over 3 seeds.",
    )


def holding(clients: int = 10) -> Grid:
    draw = random.Random(1)
    rows = []
    for number in range(clients):
        counts = [draw.choice((0, 0, 20, 80, 140)) for _ in CLASSES]
        cells = [Cell(str(count), count, shade=count / 140) if count else Cell("", 0) for count in counts]
        rows.append((cell(f"c{number:02}"), *cells, Cell(str(sum(counts)), sum(counts))))
    return Grid(
        "holding",
        "Images by client and class",
        ("Client", *CLASSES, "All"),
        tuple(rows),
        note="An empty cell: the client holds none.",
    )


def page() -> Page:
    """One block of every kind."""
    by_bytes = replace(
        lines("by-bytes"),
        chart=chart("by-bytes", "By bytes sent"),
        traces=traces(2.4e6),
        x=Axis("bytes up and down, cumulative", "bytes"),
    )
    by_time = replace(
        lines("by-seconds"),
        chart=chart("by-seconds", "By seconds"),
        traces=traces(95),
        x=Axis("seconds, cumulative", "seconds"),
    )
    sections = (
        Section("numbers", "Results", (results(), Text("Against FedAvg: in points, seed by seed.", "mute"))),
        Section(
            "accuracy",
            "Accuracy",
            (
                legend(),
                lines(),
                by_bytes,
                by_time,
                Text("On clean test images. Bands are ± one sample standard deviation over seeds.", "mute"),
            ),
        ),
        Section("holding", "Who held what", (holding(), heat(10, 10, "confusion", share=True))),
        Section(
            "images",
            "Distilled images",
            (Text("One row a class. ● the client holds the class, ○ it does not."), album()),
        ),
        Section(
            "matching",
            "Matching",
            (
                Text("c02 in round 1: its matching loss rose from 0.9 to 1.7", "sick"),
                heat(),
                heat(57, 100, "loss-many"),
                Folded("Every client and round", (grid("every"), cloud())),
            ),
        ),
        Section("costs", "What it cost", (bars(), pareto(), grid("bytes", "Bytes"))),
        Section(
            "run",
            "What was run",
            (
                Facts(
                    (
                        ("Method", (("FedDGM, FedAvg", ""),)),
                        ("Versions", (("torch 2.13", "seed 0"), ("torch 2.14", "seed 1"))),
                    )
                ),
                Folded("All settings", (grid("settings"),)),
            ),
        ),
    )
    return Page(
        "FedDGM, FedAvg, PriorOnly, Centralised",
        "After 10 rounds, on the network that clients train (convnet), FedDGM leads with 91.2 ± 0.6 % of the test images "
        "labelled correctly, 11.1 points above FedAvg; training on all the data in one place, the ceiling, reaches 97.0 ± 0.2 %.",
        "Mean ± sample standard deviation over 3 seeds.",
        ("digits-c: metrics.jsonl lacks round 4.",),
        sections,
    )
