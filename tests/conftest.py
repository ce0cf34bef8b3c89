"""Set up as a run is: one thread, malloc tuned, telemetry off."""

from fedstill.runtime import prepare

prepare(threads=1)
