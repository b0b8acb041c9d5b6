"""The parts of the time before a first step, run by run."""

import re
import time

from zephyr_jax import startup


def test_a_run_after_one_that_failed_counts_its_own_time() -> None:
    """Phases of a run that ended before its first step are no part of the next one's line."""
    startup.begin()
    startup.add_phase("data", 0.0)
    time.sleep(0.3)  # the user repairs what failed
    startup.begin()
    startup.add_phase("weights", 0.0)
    line = startup.summary("none")
    assert re.fullmatch(r"first step done after 0\.0 s: weights 0\.0 s, compile 0\.0 s \(none\)", line), line


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
