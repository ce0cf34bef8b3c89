"""CPU time of ``import fedstill`` and of ``fedstill --help``, Python's own start included.

    python benchmarks/import_time.py

The house's limit for each is half a second.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import fedstill": ["-c", "import fedstill"],
    "fedstill --help": ["-m", "fedstill", "--help"],
}


def cpu_seconds(arguments: list[str]) -> float:
    """User and system time of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats
    print(f"{'command':20} {'median':>8} {'worst':>8}   CPU seconds of {repeats}, after one to warm the disk's cache")
    for name, arguments in COMMANDS.items():
        cpu_seconds(arguments)
        taken = [cpu_seconds(arguments) for _ in range(repeats)]
        print(f"{name:20} {statistics.median(taken):8.3f} {max(taken):8.3f}")


if __name__ == "__main__":
    main()
