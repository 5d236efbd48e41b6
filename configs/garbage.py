"""The garbage collector, told to leave a long-lived process alone.

What was made at the start never becomes garbage, and what a token needs is freed by its reference
count: only cycles are left to be found. By default Python would look for them every 700 objects,
through all of them now and then, at 8 % of the engine's time. Too seldom is no good either: to
look through 50,000 new ones takes 60 to 130 ms, in which nobody is answered.
"""

import gc

_YOUNG_OBJECTS, _YOUNG_ROUNDS, _MIDDLE_ROUNDS = 5_000, 20, 50


def settle() -> None:
    """Call once the process has all that it keeps."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, _YOUNG_ROUNDS, _MIDDLE_ROUNDS)
