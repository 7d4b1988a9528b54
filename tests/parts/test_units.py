"""Units: every prefix, what is refused, and text that reads back to the last bit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from moesim import units

DECIMAL = {"n": 1e-9, "u": 1e-6, "µ": 1e-6, "μ": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
           "P": 1e15}
BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
SYMBOLS = {"byte": "B", "byte/second": "B/s", "second": "s", "flop/second": "FLOP/s", "joule": "J", "watt": "W"}


@pytest.mark.parametrize("unit", SYMBOLS)
@pytest.mark.parametrize("prefix", DECIMAL)
def test_decimal_prefixes(prefix: str, unit: str) -> None:
    assert units.parse(f"3 {prefix}{SYMBOLS[unit]}", unit) == pytest.approx(3 * DECIMAL[prefix], rel=1e-15)


@pytest.mark.parametrize("prefix", BINARY)
def test_binary_prefixes(prefix: str) -> None:
    assert units.parse(f"3 {prefix}B", "byte") == 3 * BINARY[prefix]
    assert units.parse(f"1.5 {prefix}B/s", "byte/second") == 1.5 * BINARY[prefix]


@pytest.mark.parametrize(("text", "unit", "value"), [
    ("10 us", "second", 1e-05), ("0.1 us", "second", 1e-07), ("2.5 us", "second", 2.5e-06),  # to the last bit
    ("2 min", "second", 120), ("400 Gbit/s", "byte/second", 50e9), ("8 bit", "byte", 1), ("10 /s", "1/second", 10),
    ("10 / s", "1/second", 10), ("1.2e3 B", "byte", 1200), (" .5 GB ", "byte", 5e8), ("7 W s", "joule", 7)])
def test_values(text: str, unit: str, value: float) -> None:
    assert units.parse(text, unit) == value


@pytest.mark.parametrize(("text", "unit", "message"), [
    ("4", "byte", "'4' has no unit; write a size, e.g. '141 GB'"),
    ("4 GB", "second", "'4 GB' is not a time; write e.g. '2.5 us'"),
    ("4 Gb", "byte", "'4 Gb' is ambiguous: write Gbit (bits) or GB (bytes)"),
    ("4 Gib/s", "byte/second", "'4 Gib/s' is ambiguous: write Gbit (bits) or GB (bytes)"),
    ("4 Pb", "byte", "'4 Pb' is ambiguous: write Gbit (bits) or GB (bytes)"),
    ("4 KB", "byte", "'4 KB' is not a size; write e.g. '141 GB'"),
    ("1e400 B", "byte", "'1e400 B' is not a finite size; write e.g. '141 GB'"),
    ("5 * 3 B", "byte", "'5 * 3 B' is not a number with a unit; write a size, e.g. '141 GB'"),
    ("2**3 B", "byte", "'2**3 B' is not a number with a unit; write a size, e.g. '141 GB'"),
    ("GB", "byte", "'GB' is not a number with a unit; write a size, e.g. '141 GB'"),
    ("nan B", "byte", "'nan B' is not a number with a unit; write a size, e.g. '141 GB'"),
    ("", "watt", "'' is not a number with a unit; write a power, e.g. '700 W'"),
])
def test_what_is_refused(text: str, unit: str, message: str) -> None:
    with pytest.raises(units.UnitError) as caught:
        units.parse(text, unit)
    assert str(caught.value) == message


@settings(deadline=None)  # the first quantity imports pint
@given(st.floats(min_value=0, allow_infinity=False), st.sampled_from(sorted(units.KINDS)))
def test_text_reads_back_to_the_last_bit(value: float, unit: str) -> None:
    assert units.parse(units.text(value, unit), unit) == value


FIELD = TypeAdapter(units.Bytes)


@settings(deadline=None)  # the first quantity imports pint
@given(st.floats(min_value=0, allow_infinity=False))
def test_fields_dump_what_they_read(value: float) -> None:
    dumped = FIELD.dump_python(value, mode="json")
    assert isinstance(dumped, str) and FIELD.validate_python(dumped) == value


def test_fields_take_zero_but_nothing_negative_and_no_bare_number() -> None:
    assert FIELD.validate_python("0 B") == 0
    for bad, message in (("-1 B", "'-1 B' is negative; a size is not"), (5, "5 has no unit; write a size"),
                         (None, "None has no unit")):
        with pytest.raises(ValueError) as caught:
            FIELD.validate_python(bad)
        assert message in str(caught.value)


@pytest.mark.parametrize(("value", "unit", "shown"), [
    (4.8e12, "byte/second", "4.8 TB/s"), (1e3, "byte", "1 kB"), (999, "byte", "999 B"), (0, "byte", "0 B"),
    (2.5e-6, "second", "2.5 us"), (1e-9, "second", "1 ns"), (20e-3, "second", "20 ms"), (1e15, "flop/second",
     "1 PFLOP/s"), (-5e9, "byte", "-5 GB"), (10, "1/second", "10 /s"), (1, "watt", "1 W"), (1e6, "joule", "1 MJ")])
def test_pretty(value: float, unit: str, shown: str) -> None:
    assert units.pretty(value, unit) == shown


@settings(deadline=None)  # the first quantity imports pint
@given(st.floats(min_value=1e-8, max_value=1e17), st.sampled_from(sorted(SYMBOLS)))
def test_what_is_shown_is_what_was_meant(value: float, unit: str) -> None:
    assert units.parse(units.pretty(value, unit, 9), unit) == pytest.approx(value, rel=1e-8)
