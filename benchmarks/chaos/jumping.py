"""zephyr-jax in a process whose clock jumps by hours and years, forward and back. Run as a program: SEED COMMAND ...

The wall clock jumps (time.time); the monotonic clock does not.
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
    """Replace the clock, then run zephyr-jax."""
    time.time = lambda: _TRUE() + _SHIFT[0]
    time.time_ns = lambda: int(time.time() * 1e9)
    threading.Thread(target=_jump, args=(int(sys.argv[1]),), daemon=True).start()
    sys.argv = ["zephyr-jax", *sys.argv[2:]]
    runpy.run_module("zephyr_jax", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
