"""DAPO's soft overlong punishment (arXiv 2503.14476, equation 13)."""


def soft_overlong(tokens: int, limit: int, buffer: int, *, cut: bool) -> float:
    """0 up to `limit − buffer` tokens, from there linear to −1 at `limit`; −1 for what the limit has cut.

    `tokens` is the length of the completion and `limit` the most it could have had; 0 < `buffer` ≤ `limit`.
    """
    assert 0 < buffer <= limit
    if cut or tokens > limit:
        return -1.0
    return min(0.0, (limit - buffer - tokens) / buffer)
