"""The server of real sites, as a run's venue: the SuperLink, who is there, and a run whose images nobody here has."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fedstill.data.partition import Partition
from fedstill.data.shard import Normalisation, Shard
from fedstill.data.sources import Loaded, digest, load
from fedstill.deployment.federation import Federation, agreed, check_summable, form
from fedstill.engines.memory import Memory
from fedstill.errors import InputError, listed
from fedstill.experiment import Experiment, Parts
from fedstill.folder import FEDERATION
from fedstill.rounds import CLIENT_NAME, Desk, Engine, cohort_size
from fedstill.runtime import Processes, Spent
from fedstill.seeds import Seed
from fedstill.sites import Uses
from fedstill.workplace import Workplace

__all__ = ["KINDS", "Served", "site_keys"]

KINDS = "sites"
"""What ``engine.kind`` says in the record of such a run."""

_RUN = re.compile(r"[0-9a-f]{32}")


def site_keys(folder: Path) -> dict[str, Path]:
    """Public keys by site: every ``NAME.pub`` in ``folder``, names sorted.

    Raises:
        InputError: there is none, or a name is none.
    """
    found = {path.stem: path for path in sorted(folder.glob("*.pub"))}
    if not found:
        raise InputError(
            f"{folder} holds no site's public key: put NAME.pub of every site there, or make keys with  fedstill certs"
        )
    for name in found:
        if not CLIENT_NAME.fullmatch(name):
            raise InputError(
                f"{found[name]}: a site's name has 1 to 64 letters, digits, '.', '_' or '-', and no dot in front"
            )
    return found


@dataclass(frozen=True, kw_only=True)
class Served:
    """A :class:`~fedstill.workplace.Venue`: sites that call this server.

    Attributes:
        keys: the file of its public key, by site. These are the run's clients.
        certificate, key: of the server, PEM files.
        host, port: to listen on; port 0 takes a free one.
        largest: bytes that an answer of a site may take on its way.
        wait: seconds after which the run begins with the sites that are ready, if they are the quorum; None: all are waited for.
        pause: seconds between questions to a site that was not ready.
        command: options by which ``fedstill server`` comes to the same keys and address, for whoever goes on with the run.
    """

    keys: Mapping[str, Path]
    certificate: Path
    key: Path
    host: str
    port: int
    largest: int = 1_000_000_000
    wait: float | None = None
    pause: float = 10.0
    command: str = ""

    def parts(self, experiment: Experiment) -> Parts:
        """A run without training images: form and classes are stated, test images are the server's own where it has some."""
        Federation.of(experiment)
        if experiment.engine.secure:
            asked = cohort_size(experiment.cohort, tuple(self.keys), experiment.quorum)
            check_summable(experiment.algorithm, asked, experiment.update)
        channels, size, normalisation = form(experiment)
        if experiment.evaluate.gradients:
            raise InputError("evaluate.gradients = true: it needs all sites' images in one place; set it to false")
        classes = experiment.data.classes
        assert classes is not None
        seed = Seed.root(experiment.seed)
        world = experiment.world(classes, normalisation, channels=channels, size=size)
        algorithm = experiment.algorithm.build(world, experiment.virtual, experiment.update)
        sites = tuple(self.keys)
        nothing = _none(channels, size, classes, normalisation)
        data = Loaded(nothing, _test_images(experiment, seed, nothing), None, None, ())
        return Parts(
            algorithm=algorithm,
            sites={},
            world=world,
            data=data,
            partition=Partition(kind=KINDS, options={}, clients=dict.fromkeys(sites, ()), histogram={}, hash=""),
            uses=Uses({}, {}),
            cohort=experiment.cohort,
            start=experiment.beginning(algorithm, world, sites, experiment.cohort),
            identity={**agreed(experiment), "sites": list(sites), "test images": digest(data)},
            seed=seed.at("run"),
        )

    @contextmanager
    def open(
        self,
        experiment: Experiment,
        parts: Parts,
        desk: Desk,
        memory: Memory,
        *,
        kept: Path | None,
        note: Callable[[str], None],
    ) -> Iterator[Workplace]:
        """The SuperLink up, and the sites gathered."""
        from fedstill.engines.flower.calls import run_facts
        from fedstill.engines.flower.gathering import gathered
        from fedstill.engines.flower.post import FlowerEngine
        from fedstill.engines.flower.secure import SecureEngine
        from fedstill.engines.flower.superlink import Tls, public_key, superlink

        keys = {site: public_key(_read(path), str(path)) for site, path in self.keys.items()}
        _distinct(keys)
        run = (_kept(kept) if kept is not None else None) or secrets.token_hex(16)
        facts = run_facts(run, experiment.name, agreed(experiment), secure=experiment.engine.secure)
        tls = Tls(self.certificate, self.key)
        with superlink(keys, host=self.host, port=self.port, tls=tls, largest=self.largest) as hosted:
            note(f"listening on {self.host}:{hosted.port} for {listed(list(keys))}")
            there = gathered(
                hosted,
                facts,
                least=experiment.quorum,
                wait=self.wait,
                again=self.pause,
                progress=desk.progress,
                note=note,
            )
            spent = Spent()
            engine: Engine = FlowerEngine(
                hosted.grid,
                hosted.nodes,
                desk,
                None,
                spent,
                also=facts,
                online=hosted.online,
                timeout=experiment.engine.timeout,
                pause=0.1,
            )
            if experiment.engine.secure:
                engine = SecureEngine(engine, run, experiment.engine.secure_range)
            if experiment.engine.workers > 1:
                processes = Processes(experiment.engine.workers, experiment.threads)
                desk, spent = replace(desk, map=processes), processes.spent
            scored = tuple(site for site, readiness in there.items() if readiness.scored)
            yield Workplace(
                engine, desk, spent, scored, record={"run": run, "sites": list(keys), "command": self.command}
            )


def _test_images(experiment: Experiment, seed: Seed, nothing: Shard) -> Shard:
    """``data.test``, read as the training images of an experiment are; all of it."""
    data = experiment.data
    if data.test is None:
        return nothing
    if data.source == "digits":
        raise InputError(
            f"data.test = '{data.test}': data.source = 'digits' reads no file; say what it is: folder, parquet or arrays"
        )
    settings = replace(data, path=data.test, test=None, limit=data.test_limit, test_limit=None, corruptions=None)
    return load(settings, seed.at("data"), split=False).train


def _none(channels: int, size: tuple[int, int], classes: tuple[str, ...], normalisation: Normalisation) -> Shard:
    images = torch.empty(0, channels, *size, dtype=torch.uint8)
    return Shard(images, torch.empty(0, dtype=torch.int64), classes, normalisation)


def _kept(out: Path) -> str | None:
    """The number of the run in ``out``, by which sites know it; None where it never began."""
    try:
        found: Any = json.loads((out / FEDERATION).read_text(encoding="utf-8"))
        run = found["run"]
        if isinstance(run, str) and _RUN.fullmatch(run):
            return run
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(
        f"{out / FEDERATION} cannot be read: put it back from a copy, or begin the run anew with --overwrite"
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _distinct(keys: Mapping[str, bytes]) -> None:
    owners: dict[str, str] = {}
    for site, key in keys.items():
        mark = hashlib.sha256(key).hexdigest()
        if mark in owners:
            raise InputError(
                f"the sites '{owners[mark]}' and '{site}' have the same key: every site needs one of its own"
            )
        owners[mark] = site
