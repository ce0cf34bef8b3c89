"""Flower as the engine: the same algorithms on its messages. Here and in the apps alone is ``flwr`` imported, by its modules:

records.py      a Bundle as Flower's records and back, without loss
post.py         an engine on Flower's Grid: roll call, messages, time-outs, answers
simulation.py   a Grid whose nodes are processes of Ray, on this machine or a cluster
"""

import os
from importlib.util import find_spec

from fedstill.errors import MissingExtra
from fedstill.runtime import silence

for _package in ("flwr", "ray"):
    if find_spec(_package) is None:
        raise MissingExtra(_package, extra="flower", wanted_for="engine.kind = 'flower'")
silence()
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # or what is done after its end starts another Ray
