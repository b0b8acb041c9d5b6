"""The parts of the time before a first step, run by run."""

import re
import time

from zephyr_jax import startup


def test_a_second_run_of_a_process_does_not_count_the_first_again() -> None:
    """What passed before the second run began is no part of its line."""
    startup.begin()
    startup.add_phase("data", 0.0)
    startup.summary("")
    time.sleep(0.3)  # the first run trains
    startup.begin()
    startup.add_phase("weights", 0.0)
    line = startup.summary("none")
    assert re.fullmatch(r"first step done after 0\.0 s: weights 0\.0 s, compile 0\.0 s \(none\)", line), line
