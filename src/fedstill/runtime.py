"""The process: device, threads, malloc, telemetry. Set once, before torch is imported where that can be.

Also the :class:`Processes` map, because a worker process is set up the same way as the main one.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import platform
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn, TypeVar

from fedstill.errors import InputError

__all__ = [
    "Processes",
    "Spent",
    "available_memory",
    "describe",
    "heed_termination",
    "in_worker",
    "interrupts",
    "leave",
    "peak_memory",
    "pick_device",
    "prepare",
    "prepared",
    "ran_out",
    "silence",
]

A = TypeVar("A")
B = TypeVar("B")

_CGROUP = Path("/sys/fs/cgroup")

# glibc's names, from malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4

TELEMETRY_OFF = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # no telemetry: without it Ray hides the GPUs from work that asks for none
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "DO_NOT_TRACK": "1",
}


def silence() -> None:
    """Telemetry of dependencies off, unless the user has set it: before they are imported."""
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)


def prepare(threads: int = 1, *, malloc: bool = True) -> None:
    """Set up this process: telemetry of dependencies off, malloc tuned, ``threads`` compute threads.

    ``threads`` belongs to the experiment: how a sum is split over threads changes its last bits. ``malloc = False`` leaves the
    allocator as the system has it.
    """
    silence()
    if malloc:
        _tune_malloc()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        if "torch" not in sys.modules:
            os.environ[name] = str(threads)
    import torch

    torch.set_num_threads(threads)


@contextmanager
def prepared(threads: int) -> Iterator[None]:
    """:func:`prepare` for a piece of work; a caller's own thread count is put back."""
    import torch

    held = torch.get_num_threads()
    prepare(threads)
    try:
        yield
    finally:
        torch.set_num_threads(held)


@contextmanager
def interrupts() -> Iterator[Callable[[], None]]:
    """Gives a check for a Ctrl-C that was lost: it raises the KeyboardInterrupt again.

    Python drops an exception that a destructor or a callback raises, and a Ctrl-C is raised wherever the process happens to be.
    Whoever answers Ctrl-C in a way of their own is left to it.
    """
    main = threading.current_thread() is threading.main_thread()  # which alone may say what a signal does
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: None
        return
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.default_int_handler(number, frame)

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, press)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def heed_termination() -> None:
    """SIGTERM, by which services are ended, is answered as Ctrl-C is: whoever is connected says goodbye."""
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))


def leave(code: int) -> NoReturn:
    """End this process, in which all is said and done, without delay; its exit code is ``code``.

    What others have registered for the end is done. A Ctrl-C meanwhile cuts it short instead of showing tracebacks.
    """
    global _leaving
    _leaving = code
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(code))
    sys.exit(code)


_leaving: int | None = None


def _cut_short() -> None:
    """Registered before all others, so the last that is called.

    What Python would do after it frees what ends anyway: to take torch's modules apart costs 1.4 s on a machine that imports them
    in 2.3, threads of C libraries may wait for each other there, and a Ctrl-C would kill the process with another exit code.
    """
    if _leaving is None:
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # whoever read them may be gone
            stream.flush()
    os._exit(_leaving)


atexit.register(_cut_short)


def _tune_malloc() -> None:
    """Keep big buffers in the process instead of giving them back to the system at every step.

    glibc maps and unmaps every tensor above some size; the page faults cost a third of a training step's time on small
    networks. Other C libraries are left as they are.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_TOP_PAD, 64 * 2**20)


def pick_device(wanted: str) -> str:
    """``auto`` → the best device there is; a named one is checked.

    Raises:
        InputError: the named device is unknown or not there.
    """
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if wanted not in there:
        raise InputError(f"engine.device = '{wanted}': known: auto, {', '.join(there)}")
    if not there[wanted]:
        raise InputError(f"engine.device = '{wanted}': this machine or this build of torch has none; use 'auto'")
    return wanted


def peak_memory() -> int | None:
    """Largest resident size of this process so far, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def ran_out(error: BaseException) -> bool:
    """Whether it says that memory does not suffice: on a CPU torch has no class for it."""
    return isinstance(error, MemoryError) or bool(re.search("out of memory|can't allocate memory", str(error)))


def available_memory() -> int | None:
    """Bytes that new processes can take without driving others out; None where the system does not tell."""
    known = [each for each in (_of_machine(), _of_container()) if each is not None]
    return min(known, default=None)


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = next((line.split() for line in lines if line.startswith("MemAvailable:")), None)
    return int(found[1]) * 1024 if found else None


def _of_container() -> int | None:
    """What the limit of this process's control group leaves; what it keeps of files can be taken back."""
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - used + int(stat.get("inactive_file", 0)))


def describe(device: str) -> dict[str, str]:
    """Versions and hardware, for a run's record."""
    import numpy
    import torch

    import fedstill

    found = {
        "fedstill": fedstill.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": f"{_cpu_name()}, {os.cpu_count()} cores",
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


@dataclass
class Spent:
    """What a run's other processes took so far: largest resident size of one, in bytes, and CPU time of their tasks."""

    peak: int = 0
    cpu_seconds: float = 0.0

    def add(self, peak: int, cpu_seconds: float) -> None:
        """One more task."""
        self.peak = max(self.peak, peak)
        self.cpu_seconds += cpu_seconds


class Processes:
    """A map over worker processes that keeps order, through joblib.

    Attributes:
        spent: what they took.
    """

    def __init__(self, workers: int, threads: int = 1) -> None:
        self.workers = workers
        self.threads = threads
        self.spent = Spent()

    def __call__(self, function: Callable[[A], B], items: Iterable[A], /) -> Iterator[B]:
        from joblib import Parallel, delayed

        # "2*n_jobs": a thousand clients must not wait as a thousand pickled messages
        parallel = Parallel(n_jobs=self.workers, return_as="generator", pre_dispatch="2*n_jobs")
        call = delayed(partial(in_worker, self.threads, function))
        with _born_deaf():  # workers are started here, where they are missing
            outcomes = parallel(call(item) for item in items)
        for result, peak, cpu_seconds in outcomes:
            self.spent.add(peak, cpu_seconds)
            yield result


@contextmanager
def _born_deaf() -> Iterator[None]:
    """Processes that are started meanwhile never hear a Ctrl-C, which reaches every process of a terminal.

    The main one alone answers it, and ends its workers. A worker that heard it would die with a traceback, or be missed with
    a warning. It has to be born so: what it could say for itself comes after its first second. It inherits a mask as it would
    inherit a signal that is ignored; but ignored for as long as work is handed out, a Ctrl-C is lost; masked it
    waits, or another thread takes it.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where no child inherits either
        yield
        return
    # imported late: multiprocessing registers what it does at the end when it is imported, and _cut_short is to come after that
    from multiprocessing.resource_tracker import ensure_running

    ensure_running()  # or it is started below, and Python 3.11's takes the mask off
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def in_worker(threads: int, function: Callable[[A], B], item: A) -> tuple[B, int, float]:
    """``function(item)`` in a worker process; with that process's largest resident size in bytes, and the CPU seconds it took."""
    began = time.process_time()
    prepare(threads)
    result = function(item)
    return result, peak_memory() or 0, time.process_time() - began
