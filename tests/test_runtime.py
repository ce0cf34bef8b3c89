"""The process: how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys


def test_ctrl_c_while_a_process_ends_says_nothing_and_keeps_its_exit_code():
    script = (
        "import atexit, time\n"
        "from fedstill.runtime import leave\n"
        "atexit.register(lambda: (print('ending', flush=True), time.sleep(1)))\n"
        "leave(3)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ending\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 3


def test_ctrl_c_while_work_is_handed_to_processes_is_heard():
    script = (
        "import os, signal, sys\n"
        "from fedstill.runtime import Processes\n"
        "def items():\n"
        "    yield 1.0\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    yield from (2.0, 3.0)\n"
        "try:\n"
        "    print(list(Processes(2)(abs, items())))\n"
        "except KeyboardInterrupt:\n"
        "    print('heard')\n"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert told.stdout == "heard\n", told.stderr
