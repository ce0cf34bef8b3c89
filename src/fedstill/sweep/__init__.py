"""A sweep: methods × settings × seeds from one file, each a run of its own, and one page of all of them.

    from fedstill.sweep import read, work

    cells = read(["experiments/methods/digits5.toml"], seeds=[0, 1])
    done = work(cells, "runs/digits5")

table.py  names.py  sheet.py  published.py  grid.py     files and options → cells; nothing is run or written
state.py                                                what a cell's folder holds already
machine.py  forecast.py  estimate.py                    how many at a time, how long, how much memory
cell.py  process.py                                     a cell's process, and the sweep's side of it
crew.py  hearing.py  record.py  work.py                 cells at work, who hears of it, what is kept
"""

from __future__ import annotations

from fedstill.sweep.grid import Cell, read
from fedstill.sweep.work import Done, work

__all__ = ["Cell", "Done", "read", "work"]
