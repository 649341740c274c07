"""What the numbers of a message may be: each check raises ValueError with a sentence that names the field."""

from __future__ import annotations


def whole(name: str, value: int | None, low: int, high: int, what: str) -> None:
    if value is not None and not (type(value) is int and low <= value <= high):
        raise ValueError(f"{name} must be {what}, not {shown(value)}")


def number(name: str, value: float | None, low: float, high: float, what: str) -> None:
    """Neither a NaN nor an infinity lies between two numbers."""
    if value is not None and not (type(value) in (int, float) and low <= value <= high):
        raise ValueError(f"{name} must be {what}, not {shown(value)}")


def shown(value: object) -> str:
    """Numbers of thousands of digits exist, and Python refuses to print them."""
    return "so large a number" if isinstance(value, int) and value.bit_length() > 200 else repr(value)[:100]
