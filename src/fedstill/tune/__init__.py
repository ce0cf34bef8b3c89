"""The search for an experiment's best settings: trials that are runs, judged by the clients' validation images.

    from fedstill.tune import read, work

    search = read("experiment.toml", vary=["algorithm.lr=0.001..0.1:log"])
    done = work(search, "runs/tuned", trials=20)

plan.py      file and options → what is searched, and a trial's experiment; nothing is run or written
judge.py     a trial, and what its runs make of it
record.py    tune.json: every trial, and what the whole has taken
work.py      trials at work, in processes of a sweep's kind

What to try next is :mod:`fedstill.search`'s to say.
"""

from __future__ import annotations

from fedstill.tune.plan import Search, read
from fedstill.tune.work import Done, work

__all__ = ["Done", "Search", "read", "work"]
