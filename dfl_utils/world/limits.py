"""What a value may be: ranges of numbers and choices, said in one sentence where a value is none of them."""

import math
from collections.abc import Callable, Iterable

Check = Callable[[object], None]  # raises ValueError with what is to be given in the value's place


def number(
    low: float, high: float = math.inf, *, above: bool = False, below: bool = False, step: int | None = None
) -> Check:
    """A finite number from `low` to `high`, a multiple of `step`; `above` leaves out `low` itself, `below` `high`."""
    asked = f"{'more than' if above else 'at least'} {low:g}"
    asked += f" and {'less than' if below else 'at most'} {high:g}" if high < math.inf else ""
    asked += f" and a multiple of {step}" if step else ""

    def check(value: float) -> None:
        inside = low < value if above else low <= value
        inside &= value < high if below else value <= high
        if not (math.isfinite(value) and inside) or (step and value % step):
            raise ValueError(f"give {asked}")

    return check


def word(names: Iterable[str]) -> Check:
    """One of some names."""

    def check(value: str) -> None:
        if value not in names:
            raise ValueError(f"choose one of {', '.join(names)}")

    return check


def several(check: Check, kind: type = str, least: int = 1) -> Check:
    """A text of several such values with spaces between, `least` of them at least."""

    def check_all(text: str) -> None:
        parts = text.split()
        if len(parts) < least:
            raise ValueError(f"give at least {least}")
        for part in parts:
            try:
                value = kind(part)
            except ValueError:
                raise ValueError(f"{part} is none: give numbers with spaces between") from None
            check(value)

    return check_all
