"""The costs that charts have on their x axes."""

COSTS = {
    "multiplications": "Multiplications per image (millions)",
    "nonzero_multiplications": "Non-zero multiplications per image (millions)",
    "parameters": "Parameters (millions)",
    "latency_ms": "Latency of one image (ms)",
}


def unit(cost: str) -> float:
    """What a cost is divided by to be what its axis says."""
    return 1e6 if "(millions)" in COSTS[cost] else 1.0


def in_words(cost: str) -> str:
    """What an axis says of a cost, without its unit, to stand in a sentence."""
    words = COSTS[cost].partition(" (")[0].removesuffix(" per image")
    return words[0].lower() + words[1:]
