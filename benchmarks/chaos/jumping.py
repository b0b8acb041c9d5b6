"""zephyr-jax in a process whose clock jumps, by hours and by years, back and forth. Run as a program: SEED VERB ...

Python's clock that tells the date jumps (time.time); the one that measures time cannot.
"""

import random
import runpy
import sys
import threading
import time

_TRUE = time.time
_SHIFT = [0.0]


def _jump(seed: int) -> None:
    draw = random.Random(seed)
    while True:
        time.sleep(draw.uniform(0.05, 1.5))
        _SHIFT[0] = draw.choice([-1, 1]) * draw.choice([3600, 86_400, 3e7, 3e8])


def main() -> None:
    """Put the clock in place, then be zephyr-jax."""
    time.time = lambda: _TRUE() + _SHIFT[0]
    time.time_ns = lambda: int(time.time() * 1e9)
    threading.Thread(target=_jump, args=(int(sys.argv[1]),), daemon=True).start()
    sys.argv = ["zephyr-jax", *sys.argv[2:]]
    runpy.run_module("zephyr_jax", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
