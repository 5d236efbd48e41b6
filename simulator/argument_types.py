"""Argument types for argparse: numbers within bounds."""

import argparse
import math
from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def positive(text: str) -> float:
    """Parse a finite number above zero."""
    number = positive_or_inf(text)
    if math.isinf(number):
        raise argparse.ArgumentTypeError(f"{text} is not finite")
    return number


def positive_or_inf(text: str) -> float:
    """Parse a number above zero, or infinity."""
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def not_negative(text: str) -> float:
    """Parse a finite number that is zero or more."""
    return 0.0 if float(text) == 0 else positive(text)


def positive_int(text: str) -> int:
    """Parse an integer above zero."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def within(
    parse: Callable[[str], Number], least: float, most: float, unit: str
) -> Callable[[str], Number]:
    """A type that parses with `parse`, then refuses figures that no hardware or workload has."""

    def parse_within(text: str) -> Number:
        number = parse(text)
        if math.isfinite(number) and not (number == 0 or least <= number <= most):
            raise argparse.ArgumentTypeError(
                f"{text} {unit} cannot be: between {least:g} and {most:g} are plausible"
            )
        return number

    return parse_within
