"""Flower's simulation: clients are worked by processes of Ray, on this machine or on a cluster.

Data go into Ray's object store, a client's as one object, so that the other machines of a cluster need the package and nothing
else. A client's memory lies with the run and travels with its work: a client that fails, a process or a machine that dies, leaves
it as it was, and a run is resumed by either engine.
"""

from __future__ import annotations

import gc
import logging
import math
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from queue import Empty, Queue
from typing import Any, NamedTuple, TypeVar

import ray
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from fedstill.bundle import Bundle
from fedstill.engines.client import Work, client_desk, do
from fedstill.engines.flower.post import AT_ONCE, CONTROL, FlowerEngine, roll_call
from fedstill.engines.flower.records import from_records, to_records
from fedstill.engines.memory import Memory
from fedstill.errors import InputError, RunError
from fedstill.rounds import Algorithm, Desk, Failure, Site
from fedstill.runtime import TELEMETRY_OFF, Spent, in_worker

__all__ = ["RayMap", "Simulated", "simulated"]

A = TypeVar("A")
B = TypeVar("B")

_ENDS_WITHIN = 30.0
"""Seconds for Ray's processes to end when a run is over; then it ends without them."""


class Simulated(NamedTuple):
    """A simulation that is under way.

    Attributes:
        engine: where clients work.
        map: spreads the server's work over the same processes' machines.
        spent: what all of them took so far.
    """

    engine: FlowerEngine
    map: RayMap
    spent: Spent


@contextmanager
def simulated(
    algorithm: Algorithm,
    sites: Mapping[str, Site],
    desk: Desk,
    memory: Memory,
    *,
    threads: int = 1,
    workers: int = 1,
    cpus: float = 1.0,
    gpus: float = 0.0,
    address: str | None = None,
    timeout: float | None = None,
) -> Iterator[Simulated]:
    """A Flower simulation, from its start to its end.

    Args:
        algorithm: whose ``local`` and ``score`` the clients run.
        sites: data by client.
        desk: the run's; clients' desks are made from it as in process.
        memory: what clients remember between rounds.
        threads: compute threads of a client's work.
        workers: processes, where Ray is started here.
        cpus: cores that Ray counts for a client; no limit on what it takes.
        gpus: GPUs, or a share of one, that Ray gives to a client.
        address: of a running Ray cluster, ``host:port``; None starts Ray on this machine for the time of the run.
        timeout: seconds that a client may take to answer; None: as long as it takes.

    Raises:
        InputError: the cluster does not answer, or none of its machines has what a client needs.
        RunError: Flower or Ray ended.
    """
    with _connected(address, workers=workers, cpus=cpus, gpus=gpus, threads=threads) as fits:
        spent = Spent()
        scratch = desk.scratch if address is None else None  # a folder of this machine is none of another's
        job = ray.put(
            _Job(
                algorithm=algorithm,
                sites={client: ray.put(site) for client, site in sites.items()},
                desk=Desk(desk.seed, device=desk.device, scratch=scratch),
                threads=threads,
            )
        )
        # Flower passes these to Ray as they are, and would go on with a process that died for the rest of the run
        resources = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": -1}
        with _grid(_client_app(job, tuple(sites)), len(sites), resources) as (grid, alive):
            nodes = roll_call(grid, tuple(sites), alive=alive, timeout=None)
            at_once = AT_ONCE if timeout is None else fits
            engine = FlowerEngine(grid, nodes, desk, memory, spent, timeout=timeout, at_once=at_once)
            yield Simulated(engine, RayMap(threads, at_once=fits, spent=spent), spent)


@dataclass(frozen=True)
class _Job:
    """What clients' processes need for all rounds, once."""

    algorithm: Algorithm
    sites: Mapping[str, Any]  # references to Sites in Ray's object store
    desk: Desk
    threads: int


def _client_app(job: Any, clients: Sequence[str]) -> ClientApp:
    """The ClientApp of every node; ``job`` is a reference to a :class:`_Job`."""
    app = ClientApp()

    @app.query("name")
    def name(message: Message, context: Context) -> Message:
        client = clients[int(context.node_config["partition-id"])]
        return Message(RecordDict({CONTROL: ConfigRecord({"client": client})}), reply_to=message)

    @app.train("work")
    def work(message: Message, context: Context) -> Message:
        return Message(_answer(_held(job), message.content), reply_to=message)

    return app


@lru_cache(maxsize=1)
def _held(job: Any) -> _Job:
    """Fetched once a process."""
    found: _Job = ray.get(job)
    return found


def _answer(job: _Job, content: RecordDict) -> RecordDict:
    about: Any = content.config_records[CONTROL]
    number, task, client = int(about["round"]), str(about["task"]), str(about["client"])
    work = Work(
        client=client,
        site=ray.get(job.sites[client]),
        inbox=from_records(content),
        memory=Bundle.from_bytes(about["memory"]),
        desk=client_desk(job.desk, number, client, task),
    )
    done, peak, cpu_seconds = in_worker(job.threads, lambda work: do(job.algorithm, task, work), work)
    if isinstance(done.answer, Failure):
        told: dict[str, Any] = {"failure": done.answer.reason, "detail": done.answer.detail}
        return RecordDict({CONTROL: ConfigRecord(told)})
    answer = to_records(done.answer.bundle)
    more: dict[str, Any] = {"peak": peak, "cpu_seconds": cpu_seconds}
    if done.memory is not None:
        more["memory"] = done.memory.to_bytes()
    answer[CONTROL] = ConfigRecord(more)
    return answer


@dataclass(frozen=True)
class RayMap:
    """A map over Ray's processes that keeps order.

    Ray counts no core for it: clients' processes hold theirs for the whole run, and are idle while the server works.
    """

    threads: int
    at_once: int
    spent: Spent

    def __call__(self, function: Callable[[A], B], items: Iterable[A], /) -> Iterator[B]:
        call: Any = ray.remote(in_worker).options(num_cpus=0, scheduling_strategy="SPREAD")
        waiting: deque[Any] = deque()
        for item in items:
            waiting.append(call.remote(self.threads, function, item))
            if len(waiting) >= self.at_once:
                yield self._taken(waiting.popleft())
        while waiting:
            yield self._taken(waiting.popleft())

    def _taken(self, reference: Any) -> Any:
        try:
            result, peak, cpu_seconds = ray.get(reference)
        except RayTaskError as error:
            raise error.cause from error  # as in process
        except RayError as error:
            raise RunError(f"a process of Ray's ended at the server's work: {str(error).splitlines()[0]}") from error
        self.spent.add(peak, cpu_seconds)
        return result


@contextmanager
def _connected(address: str | None, *, workers: int, cpus: float, gpus: float, threads: int) -> Iterator[int]:
    """Ray, started here or joined, and left again; gives how many clients' processes fit."""
    if ray.is_initialized():
        raise InputError("engine.kind = 'flower': this process is connected to Ray already; call ray.shutdown() first")
    if address is not None:
        _check_address(address)
    environment = {**TELEMETRY_OFF, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    try:
        ray.init(
            address=address or "local",
            num_cpus=None if address else math.ceil(workers * cpus),
            # Ray would listen on the machine's own address, for whoever can reach it
            _node_ip_address=None if address else "127.0.0.1",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": environment},
        )
    except Exception as error:  # Ray raises the class itself where its processes do not start in time
        ray.shutdown()
        if address is None:
            raise RunError(f"Ray does not start: {error}") from error
        raise InputError(f"engine.address = '{address}': no Ray cluster answers there ({error})") from error
    try:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        fits = sum(_room(resources, cpus, gpus) for resources in machines)
        if not fits:
            raise InputError(
                f"engine: no machine of Ray's has {cpus:g} cores and {gpus:g} GPUs for a client; "
                "lower engine.cpus or engine.gpus"
            )
        yield fits
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """That somebody answers there, which Ray would try to find out for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"engine.address = '{address}': write it as HOST:PORT, such as 'head.example.org:6379'")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"engine.address = '{address}': no Ray cluster answers there ({error}); start one with  ray start --head"
        ) from error


def _end_clients() -> None:
    """End clients' processes at once: one may have hours of work before it, for which Flower's threads would wait, and Python for
    these. Flower keeps its handles of them to itself.
    """
    for each in gc.get_objects():
        if type(each) is ActorHandle:
            ray.kill(each)


def _room(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Clients' processes that a machine of Ray's has room for, as Flower counts them."""
    by_cpus = int(resources.get("CPU", 0) / cpus)
    return min(by_cpus, int(resources.get("GPU", 0) / gpus)) if gpus else by_cpus


@contextmanager
def _grid(app: ClientApp, nodes: int, resources: Mapping[str, float]) -> Iterator[tuple[Grid, Callable[[], None]]]:
    """Flower's Grid, and a check that its simulation has not ended; it runs in a thread, so that the main one hears Ctrl-C."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)  # what fails there comes back as an answer
    opened: Queue[Grid] = Queue()
    over = threading.Event()
    ended: list[BaseException] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        opened.put(grid)
        over.wait()

    def host() -> None:
        try:
            run_simulation(server, app, nodes, backend_config={"client_resources": dict(resources)})
        except BaseException as error:
            ended.append(error)
        finally:
            over.set()

    thread = threading.Thread(target=host, daemon=True, name="simulation")

    def alive() -> None:
        if over.is_set():
            raise RunError(f"Flower's simulation ended: {ended[0] if ended else 'without a word'}")

    thread.start()
    try:
        while True:
            alive()
            try:
                grid = opened.get(timeout=0.1)
                break
            except Empty:
                continue
        yield grid, alive
    except BaseException:
        over.set()
        _end_clients()
        raise
    finally:
        over.set()
        thread.join(_ENDS_WITHIN)
