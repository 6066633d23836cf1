"""`duration`: a time in seconds as text for people.

>>> duration(0.2), duration(75), duration(7330)
('under 1 s', '1 min 15 s', '2 h 2 min')
"""

from __future__ import annotations

__all__ = ["duration"]


def duration(seconds: float) -> str:
    """A time with its two largest units.

    >>> duration(59.6), duration(3600)
    ('1 min 0 s', '1 h 0 min')

    Args:
        seconds: The time.

    Returns:
        The text.
    """
    if seconds < 1:
        return "under 1 s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
