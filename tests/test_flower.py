"""Flower as the engine: records, messages, and a simulation that gives the bits of the run in process."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.algorithms import ALGORITHMS
from fedstill.bundle import Bundle
from fedstill.conduct import EngineSettings
from fedstill.contract import tiny_sites, tiny_world
from fedstill.engines.local import LocalEngine
from fedstill.engines.memory import Memory
from fedstill.errors import InputError, RunError
from fedstill.experiment import Experiment
from fedstill.rounds import Desk, Failure, Reply, rounds
from fedstill.runtime import Spent
from fedstill.seeds import Seed
from fedstill.spoilt import SPOILT
from fedstill.tables import resolve
from test_contract import OPTIONS

pytest.importorskip("flwr")
pytest.importorskip("ray")

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedstill.engines.flower.post import CONTROL, NAME, FlowerEngine, roll_call
from fedstill.engines.flower.records import NUMBERS, TYPES, from_records, to_records


def same(one: Bundle, other: Bundle) -> bool:
    """To the bit, NaN and the sign of zero included."""
    return one.to_bytes() == other.to_bytes()


# --- records -----------------------------------------------------------------------------------------------------------

TYPES_OF_TENSORS = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(TYPES_OF_TENSORS),
    shape=st.lists(st.integers(0, 3), max_size=4),
    numbers=st.dictionaries(st.text(min_size=1, max_size=5), st.floats(), max_size=3),
    seed=st.integers(0, 99),
)
def test_a_bundle_survives_records_to_the_bit(kind, shape, numbers, seed):
    bytes_ = torch.randint(0, 256, (*shape, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    tensor = (
        bytes_[..., 0] > 127 if kind == torch.bool else bytes_[..., : kind.itemsize].contiguous().view(kind)[..., 0]
    )
    bundle = Bundle(
        {"model": {"a": tensor, "b": tensor.clone()}, "synthetic:c03": {}, "control": {"a": tensor}}, numbers
    )
    there = from_records(to_records(bundle))
    assert same(there, bundle)
    assert list(there.groups) == list(bundle.groups)  # in order
    assert list(there.numbers) == list(bundle.numbers)


def test_a_tensor_that_is_no_plain_one_survives():
    bundle = Bundle({"model": {"t": torch.arange(6.0).view(2, 3).t(), "g": torch.ones(2, requires_grad=True)}})
    assert same(from_records(to_records(bundle)), bundle.detached())


def test_what_arrives_shares_no_memory_and_can_be_written_to():
    tensor = torch.zeros(3)
    there = from_records(to_records(Bundle({"model": {"a": tensor}})))
    there.groups["model"]["a"] += 1
    assert tensor.tolist() == [0, 0, 0]


def _array(data: bytes, *, stype: str = "numpy.ndarray") -> Array:
    return Array(dtype="float32", shape=(2,), stype=stype, data=data)


HEAD = to_records(Bundle({"model": {"a": torch.zeros(2)}})).array_records["model"]["a"].data


@pytest.mark.parametrize(
    "array",
    [
        _array(b""),
        _array(b"no head at all"),
        _array(HEAD[:-1]),  # cut short
        _array(HEAD.replace(b"(2,)", b"(9,)")),  # claims more than there is
        _array(HEAD.replace(b"(2,), ", b"(8e9,)")),
        _array(HEAD.replace(b"<f4", b"|O8")),  # Python objects
        _array(HEAD.replace(b"<f4", b">f4")),  # torch knows no other order of bytes
        _array(HEAD.replace(b"(2,)", b"(-1,)")),
        _array(HEAD.replace(b"{'descr': '<f4',", b"{'descr': (     ")),
        _array(HEAD.replace(b"'<f4'", b"('<f4',)")),
        _array(HEAD.replace(b"{'descr'", b"\n {'descr'")),
        _array(HEAD, stype="pickle"),
    ],
)
def test_a_hostile_array_is_refused(array):
    records = to_records(Bundle({}, {"examples": 1.0}))
    records["model"] = ArrayRecord({"a": array})
    with pytest.raises(InputError, match="the message is damaged"):
        from_records(records)


def test_records_of_others_are_refused():
    with pytest.raises(InputError, match="was not sent by fedstill"):
        from_records(RecordDict())
    lists = RecordDict({NUMBERS: MetricRecord({"examples": [1.0, 2.0]}), TYPES: ConfigRecord()})
    with pytest.raises(InputError, match="was not sent by fedstill"):
        from_records(lists)
    unknown = to_records(Bundle({"model": {"a": torch.zeros(2)}}))
    unknown[TYPES] = ConfigRecord({"model/a": "float3"})
    with pytest.raises(InputError, match="was not sent by fedstill"):
        from_records(unknown)


# --- messages ----------------------------------------------------------------------------------------------------------


@dataclass
class Nodes:
    """A Grid whose nodes answer here: ``answer(node, message)`` gives what comes back, or None for silence."""

    answer: Callable[[int, Message], RecordDict | Error | None]
    ids: tuple[int, ...] = (7, 5, 6)
    replies: dict[str, Message] = field(default_factory=dict)
    most: int = 0

    def get_node_ids(self) -> Iterable[int]:
        return self.ids

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = []
        for message in messages:
            if message.metadata.dst_node_id not in self.ids:
                continue
            message.metadata.__dict__["_message_id"] = identity = str(uuid4())
            pushed.append(identity)
            content = self.answer(message.metadata.dst_node_id, message)
            if content is not None:
                self.replies[identity] = Message(content, reply_to=message)
        self.most = max(self.most, len(self.replies))
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        # the last sent comes first
        return [self.replies.pop(each) for each in reversed(list(message_ids)) if each in self.replies]


@pytest.fixture(autouse=True)
def _in_a_run():
    """Flower makes a message in a run only; a simulation sets these itself."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


CLIENTS = {"b": 5, "a": 6, "c": 7}


def _desk(**more: Any) -> Desk:
    return Desk(Seed.root(0).at("run"), **more)


def _echo(node: int, message: Message) -> RecordDict:
    """As a client that sends back what it got, and remembers its node."""
    reply = to_records(from_records(message.content))
    memory = Bundle({}, {"node": float(node)}).to_bytes()
    reply[CONTROL] = ConfigRecord({"peak": 10, "cpu_seconds": 0.5, "memory": memory})
    return reply


def _engine(answer: Callable[[int, Message], Any], nodes: Mapping[str, int] = CLIENTS, **more: Any) -> FlowerEngine:
    grid: Any = Nodes(answer, ids=tuple(nodes.values()))
    return FlowerEngine(grid, nodes, _desk(), Memory(), Spent(), pause=0.001, pauses=(0.01, 0.01), **more)


def _outbox(nodes: Iterable[str] = CLIENTS) -> dict[str, Bundle]:
    return {client: Bundle({"model": {"w": torch.full((2,), float(index))}}) for index, client in enumerate(nodes)}


def _answers(engine: FlowerEngine, number: int = 1, task: str = "local") -> dict[str, Reply | Failure]:
    return {answer.client: answer for answer in engine.work(number, _outbox(engine.nodes), task)}


def test_replies_belong_to_the_message_they_answer():
    engine = _engine(_echo)
    found = _answers(engine)
    assert {client: reply.bundle.groups["model"]["w"][0].item() for client, reply in found.items()} == {
        "b": 0,
        "a": 1,
        "c": 2,
    }
    assert engine.clients() == ["b", "a", "c"]
    assert engine.spent == Spent(peak=10, cpu_seconds=1.5)


def test_memory_travels_and_scoring_leaves_it():
    seen: list[tuple[int, Any]] = []

    def answer(node: int, message: Message) -> RecordDict:
        about = message.content.config_records[CONTROL]
        seen.append((int(about["round"]), Bundle.from_bytes(about["memory"]).numbers.get("node")))
        return _echo(node, message)

    engine = _engine(answer, {"a": 6})
    for number, task in ((1, "local"), (1, "score"), (2, "local"), (2, "local")):
        _answers(engine, number, task)
    # the second attempt at round 2 reads what the first read
    assert seen == [(1, None), (1, 6.0), (2, 6.0), (2, 6.0)]
    assert engine.memory.versions("a") == [1, 2]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda node, message: Error(code=2, reason="the process ended"), "its process failed: the process ended"),
        (lambda node, message: Error(code=5), "its process failed: code 5"),
        (lambda node, message: RecordDict(), "its answer cannot be read"),
        (lambda node, message: RecordDict({CONTROL: ConfigRecord({"failure": "no disk", "detail": "x"})}), "no disk"),
        (lambda node, message: RecordDict({CONTROL: ConfigRecord({"peak": 1, "cpu_seconds": 1.0})}), "cannot be read"),
        (lambda node, message: _spoilt(message, memory=b"pickle"), "its memory is damaged"),
        (lambda node, message: _spoilt(message, memory=3), "its memory is no bytes"),
        (lambda node, message: _spoilt(message, peak="much"), "'much' is no such number"),
        (lambda node, message: _spoilt(message, peak=float("inf")), "inf is no such number"),
        (lambda node, message: _spoilt(message, cpu_seconds=float("nan")), "nan is no such number"),
    ],
)
def test_an_answer_that_is_none_is_a_failure_of_this_client(answer, reason):
    engine = _engine(lambda node, message: answer(node, message) if node == 6 else _echo(node, message))
    found = _answers(engine)
    assert isinstance(found["a"], Failure)
    assert reason in found["a"].reason
    assert isinstance(found["b"], Reply)
    assert isinstance(found["c"], Reply)
    assert engine.memory.versions("a") == []


def _spoilt(message: Message, **more: Any) -> RecordDict:
    reply = to_records(from_records(message.content))
    reply[CONTROL] = ConfigRecord({"peak": 1, "cpu_seconds": 1.0, "memory": Bundle().to_bytes(), **more})
    return reply


def test_a_process_that_fails_once_has_another_try_and_no_client_has_two_answers():
    failed: list[int] = []

    def answer(node: int, message: Message) -> RecordDict | Error:
        if node in (6, 7) and failed.count(node) < (1 if node == 6 else 9):
            failed.append(node)
            return Error(code=2, reason="<class 'ray.exceptions.ActorDiedError'>:<'It died.\n\tand more'>")
        return _echo(node, message)

    engine = _engine(answer)
    answers = list(engine.work(1, _outbox(), "local"))
    assert sorted(each.client for each in answers) == ["a", "b", "c"]
    found = {each.client: each for each in answers}
    assert isinstance(found["a"], Reply)
    assert failed.count(7) == 3
    assert found["c"] == Failure("c", "its process failed: ActorDiedError: It died.", found["c"].detail)
    assert "and more" in found["c"].detail


def test_the_time_of_a_client_counts_all_its_tries():
    engine = replace(_engine(lambda node, message: Error(code=2), timeout=0.05), pauses=(60.0,) * 3)
    assert {answer.reason for answer in _answers(engine).values()} == {"gave no answer within 0.05 s"}


def test_who_is_late_or_gone_is_a_failure_and_the_others_are_not_kept():
    engine = _engine(lambda node, message: None if node == 6 else _echo(node, message), timeout=0.05)
    found = _answers(engine)
    assert found["a"] == Failure("a", "gave no answer within 0.05 s")
    assert isinstance(found["b"], Reply)
    gone = replace(engine, nodes={**CLIENTS, "d": 99})
    assert _answers(gone)["d"] == Failure("d", "is not connected")


def test_a_thousand_clients_are_worked_fifty_at_a_time():
    nodes = {f"c{index}": index for index in range(1000)}
    engine = _engine(_echo, nodes)
    assert len(_answers(engine)) == 1000
    assert engine.grid.most == 50


def test_an_interrupt_is_heard_while_nobody_answers():
    def progress(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    engine = replace(_engine(lambda node, message: None), desk=_desk(progress=progress))
    with pytest.raises(KeyboardInterrupt):
        _answers(engine)


def _named(node: int, message: Message) -> RecordDict:
    assert message.metadata.message_type == NAME
    return RecordDict({CONTROL: ConfigRecord({"client": {5: "b", 6: "a", 7: "c"}.get(node, "")})})


def test_roll_call_waits_for_all_and_gives_the_order_that_was_asked():
    grid: Any = Nodes(_named, ids=())
    looks = 0

    def alive() -> None:
        nonlocal looks
        looks += 1
        grid.ids = (7, 6, 5, 8)[:looks]  # they come one by one; the last is a stranger

    found = roll_call(grid, ("b", "a", "c"), alive=alive, timeout=None, pause=0)
    assert list(found.items()) == [("b", 5), ("a", 6), ("c", 7)]
    assert looks == 3


def test_roll_call_asks_again_and_says_why_a_node_does_not_answer():
    calls: list[int] = []

    def answer(node: int, message: Message) -> RecordDict | Error:
        calls.append(node)
        return Error(code=3, reason="no module named fedstill") if calls.count(node) <= fails else _named(node, message)

    fails = 2
    assert len(roll_call(_grid_of(answer), ("a", "b", "c"), alive=lambda: None, timeout=None, pause=0)) == 3
    calls.clear()
    fails = 3
    with pytest.raises(RunError, match=r"does not answer the roll call: its process failed: no module named fedstill"):
        roll_call(_grid_of(answer), ("a", "b", "c"), alive=lambda: None, timeout=None, pause=0)


def _grid_of(answer: Callable[[int, Message], Any]) -> Any:
    return Nodes(answer)


def test_roll_call_says_who_is_missing_and_refuses_two_of_one_name():
    grid: Any = Nodes(_named)
    with pytest.raises(RunError, match=r"1 of 4 clients are not there, such as 'd'"):
        roll_call(grid, ("a", "b", "c", "d"), alive=lambda: None, timeout=0.01, pause=0.001)
    twice: Any = Nodes(lambda node, message: _named(6, message))
    with pytest.raises(RunError, match="two nodes call themselves 'a'"):
        roll_call(twice, ("a", "b"), alive=lambda: None, timeout=1, pause=0)


# --- every method ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ThroughRecords:
    """The engine in process, all that crosses it carried as Flower's records."""

    inner: LocalEngine

    def clients(self) -> list[str]:
        return list(self.inner.clients())

    def work(self, number: int, outbox: Mapping[str, Bundle], task: str) -> Iterator[Reply | Failure]:
        carried = {client: from_records(to_records(inbox)) for client, inbox in outbox.items()}
        for answer in self.inner.work(number, carried, task):
            yield (
                answer if isinstance(answer, Failure) else Reply(answer.client, from_records(to_records(answer.bundle)))
            )


def _algorithm(name: str) -> Any:
    entry = ALGORITHMS[name]
    return resolve({name: entry.factory}, name, "algorithm.name")(
        world=tiny_world(), **(OPTIONS[name] | dict(entry.fixed))
    )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_methods_messages_survive_records(name):
    algorithm, sites = _algorithm(name), tiny_sites()
    plain = LocalEngine(algorithm, sites, _desk(), Memory())
    carried = _ThroughRecords(LocalEngine(algorithm, sites, _desk(), Memory()))
    for one, other in zip(
        rounds(algorithm, plain, desk=_desk(), until=2), rounds(algorithm, carried, desk=_desk(), until=2), strict=True
    ):
        assert same(one.state, other.state)
        assert (one.bytes_up, one.bytes_down, one.failures) == (other.bytes_up, other.bytes_down, other.failures)


@dataclass(frozen=True)
class _Told:
    """An engine whose clients have answered already."""

    replies: tuple[Reply, ...]

    def clients(self) -> list[str]:
        return [reply.client for reply in self.replies]

    def work(self, number: int, outbox: Mapping[str, Bundle], task: str) -> Iterator[Reply]:
        yield from self.replies


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "feddm"])
def test_a_spoilt_reply_is_refused_for_the_same_reason_as_in_process(name):
    algorithm, nodes = _algorithm(name), {"c00": 6, "c01": 7}
    state = algorithm.init(list(nodes), _desk())
    sites = {client: tiny_sites()[client] for client in nodes}
    work = LocalEngine(algorithm, sites, _desk()).work(
        1, {client: algorithm.broadcast(state, client) for client in nodes}, "local"
    )
    honest = {answer.client: answer.bundle for answer in work if isinstance(answer, Reply)}
    reasons = set()
    for spoil in SPOILT.values():
        for spoilt in spoil(honest["c00"]):
            sent = {6: spoilt, 7: honest["c01"]}
            try:
                to_records(spoilt)
            except (ValueError, OverflowError):
                continue  # what no record can hold cannot be sent
            about = {"peak": 1, "cpu_seconds": 0.0, "memory": Bundle().to_bytes()}

            def answer(node: int, message: Message, sent: Any = sent, about: Any = about) -> RecordDict:
                records = to_records(sent[node])
                records[CONTROL] = ConfigRecord(about)
                return records

            told = _Told((Reply("c00", spoilt), Reply("c01", honest["c01"])))
            (here,) = rounds(algorithm, told, desk=_desk(), until=1, state=state)
            (there,) = rounds(algorithm, _engine(answer, nodes), desk=_desk(), until=1, state=state)
            assert here.failures == there.failures
            assert same(here.state, there.state)
            reasons |= {failure.reason for failure in here.failures}
    assert len(reasons) > 4


# --- simulation --------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(where=st.integers(0, len(HEAD) - 1), byte=st.integers(0, 255))
def test_a_spoilt_byte_of_an_array_is_refused_or_read(where, byte):
    records = to_records(Bundle({}, {"examples": 1.0}))
    records["model"] = ArrayRecord({"a": _array(HEAD[:where] + bytes([byte]) + HEAD[where + 1 :])})
    with contextlib.suppress(InputError):
        from_records(records)


def _simulated(*arguments: object) -> dict[str, Any]:
    """``simulations.py`` in a process of its own, which Ray's handles and threads do not outlive; nothing else may either."""
    script = Path(__file__).with_name("simulations.py")
    command = [sys.executable, "-W", "ignore::ResourceWarning", str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, start_new_session=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    until = time.monotonic() + 20
    while left := _left_over(found["session"]):
        assert time.monotonic() < until, left
        time.sleep(0.2)
    return found


def _left_over(session: str) -> list[str]:
    """Processes that name Ray's folder of that session."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if session in line]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedavg", "scaffold", "feddgm", "fedlgd"])
def test_a_simulation_gives_the_bits_of_the_run_in_process(name, tmp_path):
    found = _simulated("bits", name, tmp_path)
    assert found["rounds"] == [True] * 3
    assert found["memory"]
    assert found["peak"] > 10**7


@pytest.mark.slow
def test_a_process_that_dies_is_a_failure_and_the_run_goes_on():
    found = _simulated("mortal")
    assert found["failures"] == [[], ["c01"], []], found
    assert "its process failed" in found["reason"]


@pytest.mark.slow
def test_a_run_goes_on_under_the_other_engine(tmp_path):
    assert _simulated("mixed", tmp_path)["models"] == [True]


@pytest.mark.slow
def test_ctrl_c_ends_all_while_clients_are_at_work():
    found = _simulated("sleepy")
    assert found["interrupted"]
    assert found["seconds"] < 60  # of a client's hour


@pytest.mark.slow
def test_what_no_machine_has_is_refused_and_leaves_nothing_running():
    assert _simulated("greedy")["error"].startswith("engine: no machine of Ray's has 1 cores and 3 GPUs for a client")


def test_what_only_flower_has_is_remarked_in_process():
    here = Experiment.from_table({"engine": {"timeout": 5.0}}).engine
    assert list(here.remarks()) == ["engine.timeout = 5.0 does nothing with engine.kind = 'local'"]
    there = Experiment.from_table({"engine": {"kind": "flower", "timeout": 5.0, "gpus": 0.5}}).engine
    assert there == EngineSettings(kind="flower", timeout=5.0, gpus=0.5)
    assert list(there.remarks()) == []


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("head", "write it as HOST:PORT"),
        ("127.0.0.1:ray", "write it as HOST:PORT"),
        ("127.0.0.1:1", "no Ray cluster answers"),
    ],
)
def test_an_address_where_nobody_answers_is_refused_at_once(address, why):
    from fedstill.engines.flower.simulation import simulated

    with (
        pytest.raises(InputError, match=why),
        simulated(_algorithm("fedavg"), tiny_sites(), _desk(), Memory(), address=address),
    ):
        pass


def test_without_flower_it_says_what_to_install():
    script = (
        "import sys; sys.modules['flwr'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'flwr' else find(name, *a)\n"
        "try:\n    import fedstill.engines.flower.post\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert told.startswith("MissingExtra engine.kind = 'flower' needs the package 'flwr'")
    assert "pip install 'fedstill[flower]'" in told
