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
