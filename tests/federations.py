"""A federation on loopback: certificates, sites with the images that a simulation deals them, programs as users start them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tomlkit

import tiny
from fedstill.bundle import Bundle
from fedstill.deployment.certs import make_certificates
from fedstill.experiment import Experiment

CLASSES = [str(digit) for digit in range(10)]
FORM = {"size": 8, "channels": 1, "classes": CLASSES, "mean": [0.3], "std": [0.35]}
PATIENCE = 120.0


def table(algorithm: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    """The same experiment for both: clients in process, and sites."""
    more = {"partition": {"kind": "iid", "clients": 2, "validation": 0.1}, **settings}
    return tiny.table(dict(algorithm), **{**more, "data": {**FORM, "limit": 120, "test_limit": 50}})


@dataclass(frozen=True)
class Program:
    """One that was started, in a session of its own; what it says goes into a file, so that it never waits for a reader."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    def send(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def ended(self, code: int = 0) -> str:
        """What it said until its end."""
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end: {self.said}") from None
        assert self.process.returncode == code, self.said
        return self.said


@dataclass
class Federation:
    """Files of it in ``folder``, and the programs that were started."""

    folder: Path
    table: dict[str, Any]
    port: int
    started: list[Program] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.folder / "run"

    @property
    def simulated(self) -> Experiment:
        return Experiment.from_table(self.table)

    def site(self, name: str) -> Path:
        return self.folder / name / "site.toml"

    def change(self, name: str, **changes: Any) -> None:
        """Of a site's description; ``None`` takes a key away."""
        document = tomlkit.parse(self.site(name).read_text())
        for key, value in changes.items():
            head, _, rest = key.partition("__")
            document[head] = {**document.get(head, {}), rest: value} if rest else value
        self.site(name).write_text(tomlkit.dumps(document))

    def serve(self, *options: str) -> Program:
        where = ("--keys", "keys", "--listen", f"127.0.0.1:{self.port}", "--out", "run")
        return self._start("server", "federation.toml", *where, *options)

    def attend(self, name: str, *options: str) -> Program:
        return self._start("client", f"{name}/site.toml", *options)

    def _start(self, *arguments: str) -> Program:
        log = self.folder / f"program-{len(self.started)}.log"
        with log.open("wb") as said:
            command = [sys.executable, "-m", "fedstill", *arguments]
            process = subprocess.Popen(command, cwd=self.folder, stderr=said, start_new_session=True)
        self.started.append(Program(process, log))
        return self.started[-1]

    def ledger(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name / "kept" / "ledger.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def state(self, number: int) -> bytes:
        return Bundle.open(self.out / "checkpoints" / f"round-{number:04d}.safetensors").to_bytes()


def until(happened: Callable[[], object], *alive: Program) -> None:
    """Wait for it while all of ``alive`` run."""
    end = time.monotonic() + PATIENCE
    while not happened():
        for program in alive:
            assert program.runs, program.said
        assert time.monotonic() < end, [program.said for program in alive]
        time.sleep(0.05)


@contextmanager
def federation(folder: Path, table: dict[str, Any]) -> Iterator[Federation]:
    """Sites named as the simulation's clients; whatever was started is ended."""
    made = Federation(folder, table, _free_port())
    parts = made.simulated.build()
    make_certificates(folder / "keys", hosts=None, sites=tuple(parts.partition.clients), days=2, replace=False)
    for name, rows in parts.partition.clients.items():
        held = parts.data.train.take(rows)
        (folder / name).mkdir()
        np.savez(folder / name / "images.npz", images=held.images[:, 0].numpy(), labels=held.labels.numpy())
        lacks = [CLASSES[label] for label in range(10) if label not in held.labels]
        server = {
            "address": f"127.0.0.1:{made.port}",
            "authority": "../keys/ca.crt",
            "key": f"../keys/sites/{name}.key",
        }
        data = {"source": "arrays", "path": "images.npz", "classes": CLASSES, "validation_fraction": 0.1}
        described = {"name": name, "free": "1 MB", "lacks": lacks, "server": server, "data": data}
        made.site(name).write_text(tomlkit.dumps(described))
    test = parts.data.test
    np.savez(folder / "test.npz", images=test.images[:, 0].numpy(), labels=test.labels.numpy())
    served = {**table, "data": {**FORM, "source": "arrays", "test": str(folder / "test.npz")}}
    (folder / "federation.toml").write_text(tomlkit.dumps(served))
    try:
        yield made
    finally:
        for program in made.started:
            if program.runs:
                program.send(signal.SIGKILL)
            program.process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
