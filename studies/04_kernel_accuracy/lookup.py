"""Rows of the tables of this study, and how they are written."""

from __future__ import annotations

import numpy as np
import pandas as pd

THREE = "median / mean / 90th percentile, %"


def those(table: pd.DataFrame, **where: object) -> pd.DataFrame:
    """Return the rows of *table* with these values."""
    return table[np.logical_and.reduce([table[name].to_numpy() == value for name, value in where.items()])]


def one(table: pd.DataFrame, **where: object) -> pd.Series:
    """Return the only row of *table* with these values."""
    found = those(table, **where)
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows have {where}; run study.py again to make the tables of this version")
    return found.iloc[0]


def mean_of(table: pd.DataFrame, **where: object) -> pd.Series:
    """Return the mean of the numbers in the rows of *table* with these values: of different seeds."""
    found = those(table, **where)
    if found.empty or found["seed"].nunique() != len(found):
        raise ValueError(f"rows with {where} are none or no seeds of one; run study.py again")
    return found.mean(numeric_only=True)


def mean_at(curve: pd.DataFrame, model: str, count: int) -> pd.Series:
    """Return, by operator, the mean median error of *model* from *count* points at random (0: all there are)."""
    some = curve[(curve["what"] == "random") & (curve["tested"] == "all") & (curve["model"] == model)]
    whole = some.groupby("op")["points"].transform("max")
    return some[some["points"] == (count or whole)].groupby("op")["median"].mean()


def three(row: pd.Series) -> str:
    """Return "median / mean / p90"."""
    return " / ".join(f"{row[c]:.1f}" for c in ("median", "mean", "p90"))


def span(values: pd.Series, digits: int = 1) -> str:
    """Return "least to most"."""
    return f"{values.min():.{digits}f} to {values.max():.{digits}f}"
