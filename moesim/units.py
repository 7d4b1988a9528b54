"""Quantities at the border: text with a unit comes in, SI floats stay inside.

Files and keyword arguments say ``"4.8 TB/s"``; the program computes in bytes, seconds, FLOP, joules
and watts. Decimal prefixes are powers of 1000 (``GB`` = 1e9 bytes), binary ones powers of 1024
(``GiB`` = 2**30 bytes). ``Gb`` is refused: write ``Gbit`` or ``GB``.

>>> parse("4.8 TB/s", "byte/second")
4800000000000.0
>>> parse("400 Gbit/s", "byte/second")
50000000000.0
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

if TYPE_CHECKING:
    import pint

# What a file may say, per SI unit: (name of the quantity, an example for the error message).
KINDS = {
    "byte": ("size", "141 GB"),
    "byte/second": ("bandwidth", "4.8 TB/s"),
    "second": ("time", "2.5 us"),
    "flop/second": ("compute rate", "989 TFLOP/s"),
    "joule": ("energy", "1.2 mJ"),
    "joule/byte": ("cost of data", "3.5 pJ/bit"),
    "watt": ("power", "700 W"),
    "1/second": ("rate", "10 /s"),
}

_DEFINITIONS = """
pico- = 1e-12 = p-
nano- = 1e-9 = n-
micro- = 1e-6 = u- = µ- = μ-
milli- = 1e-3 = m-
kilo- = 1e3 = k-
mega- = 1e6 = M-
giga- = 1e9 = G-
tera- = 1e12 = T-
peta- = 1e15 = P-
kibi- = 1024 = Ki-
mebi- = 1048576 = Mi-
gibi- = 1073741824 = Gi-
tebi- = 1099511627776 = Ti-
byte = [information] = B
bit = 0.125 byte
second = [time] = s
minute = 60 second = min
flop = [operation] = FLOP
joule = [energy] = J
watt = joule / second = W
"""

_DIVISORS = ("byte/second", "flop/second")  # times are quotients by these

_AMBIGUOUS = re.compile(r"(?<![A-Za-z])[kKMGTP]i?b(?![a-z])")

_NUMBER_AND_UNIT = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*[^\d*+()-]*")


class UnitError(ValueError):
    """A quantity without a unit, with the wrong one, or with an unreadable one."""


@lru_cache(maxsize=1)
def _registry() -> pint.UnitRegistry:
    import pint  # a third of a second: only when the first quantity is read

    # Decimal, so that "10 us" is 1e-05 s to the last bit.
    registry: pint.UnitRegistry = pint.UnitRegistry(None, non_int_type=Decimal)
    registry.load_definitions(_DEFINITIONS.strip().splitlines())
    return registry


@lru_cache(maxsize=4096)
def parse(text: str, unit: str) -> float:
    """Return the quantity *text* as a float in the SI *unit* (a key of ``KINDS``).

    Raises ``UnitError`` if the unit is missing, unknown, ambiguous or of another kind, or the number
    is not finite.
    """
    import pint

    kind, example = KINDS[unit]
    if _AMBIGUOUS.search(text):
        raise UnitError(f"{text!r} is ambiguous: write Gbit (bits) or GB (bytes)")
    if not _NUMBER_AND_UNIT.fullmatch(text):
        raise UnitError(f"{text!r} is not a number with a unit; write a {kind}, e.g. '{example}'")
    try:
        quantity = _registry()(text)
    except (pint.errors.PintError, ArithmeticError, AssertionError, SyntaxError, TypeError, ValueError) as error:
        raise UnitError(f"{text!r} is not a {kind}; write e.g. '{example}'") from error
    if not isinstance(quantity, pint.Quantity) or quantity.dimensionless:
        raise UnitError(f"{text!r} has no unit; write a {kind}, e.g. '{example}'")
    try:
        value = float(quantity.to(unit).magnitude)
    except pint.errors.DimensionalityError as error:
        raise UnitError(f"{text!r} is not a {kind}; write e.g. '{example}'") from error
    if not abs(value) < float("inf"):
        raise UnitError(f"{text!r} is not a finite {kind}; write e.g. '{example}'")
    return value


_SYMBOL = {"byte": "B", "byte/second": "B/s", "second": "s", "flop/second": "FLOP/s",
           "joule": "J", "joule/byte": "J/B", "watt": "W", "1/second": "/s"}


def text(value: float, unit: str) -> str:
    """Return *value* (in the SI *unit*) as text that ``parse`` reads back exactly."""
    return f"{value!r} {_SYMBOL[unit]}" if unit != "1/second" else f"{value!r} / s"


_SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""),
           (1e-3, "m"), (1e-6, "u"), (1e-9, "n"))


def pretty(value: float, unit: str, digits: int = 3) -> str:
    """Return *value* (in the SI *unit*) for human eyes, as ``'4.8 TB/s'``."""
    rounded = float(f"{value:.{digits}g}")  # first, so that 999.99 kB is 1 MB
    scale, prefix = next(((s, p) for s, p in _SCALES if abs(rounded) >= s), (1.0, ""))
    return f"{rounded / scale:.{digits}g} {prefix}{_SYMBOL[unit]}"


def _quantity(unit: str) -> Any:
    def read(value: Any) -> float:
        kind, example = KINDS[unit]
        if not isinstance(value, str):
            raise UnitError(f"{value!r} has no unit; write a {kind}, e.g. '{example}'")
        number = parse(value, unit)
        if number < 0:
            raise UnitError(f"{value!r} is negative; a {kind} is not")
        if number == 0 and unit in _DIVISORS:
            raise UnitError(f"{value!r} is zero: nothing would ever finish; write a {kind}, e.g. '{example}'")
        return number

    return Annotated[float, BeforeValidator(read), PlainSerializer(lambda v: text(v, unit), return_type=str)]


# Field types for specs and parts: they accept text with a unit, hold SI floats, and dump as text.
if TYPE_CHECKING:
    Bytes = float
    BytesPerSecond = float
    Seconds = float
    FlopPerSecond = float
    Joules = float
    JoulesPerByte = float
    Watts = float
    PerSecond = float
else:
    Bytes = _quantity("byte")
    BytesPerSecond = _quantity("byte/second")
    Seconds = _quantity("second")
    FlopPerSecond = _quantity("flop/second")
    Joules = _quantity("joule")
    JoulesPerByte = _quantity("joule/byte")
    Watts = _quantity("watt")
    PerSecond = _quantity("1/second")
