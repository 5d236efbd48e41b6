"""When requests arrive: a Poisson stream, a burstier or a steadier one, or all at once."""

import math
import random


def arrival_times(count: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """`count` offsets in seconds, ascending, the first 0; `rate` requests per second on average.

    The gaps follow a gamma distribution of shape `burstiness`, as in vLLM's `bench serve`: 1 is a
    Poisson stream, less is burstier, more is steadier. An infinite rate is all at once.
    """
    if math.isinf(rate):
        return [0.0] * count
    rng = random.Random(f"arrivals {seed}")
    times, now = [], 0.0
    for _ in range(count):
        times.append(now)
        now += rng.gammavariate(burstiness, 1 / (rate * burstiness))
    return times
