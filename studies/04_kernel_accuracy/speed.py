"""How long fitting an operator and predicting 100 000 rows take. Times of an idle machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import setting

from moesim.kernels import fitting, read

ROWS = 100_000


def tasks() -> list[tuple[str]]:
    """Return the operators."""
    return [(op,) for op in setting.OPERATORS]


def table(folder: str, op: str) -> pd.DataFrame:
    """Return a row per model: seconds of ``kernels.fit`` (with its judging), and of one prediction of many rows."""
    path = setting.find(folder, op, "0.24.0")
    assert path is not None, "points() says where the tables are"
    some, measured = setting.points(folder, op), read(path).only(impl=[setting.OPERATORS[op].impl], dtype=setting.DTYPE)
    many = some.take(np.resize(np.arange(len(some)), ROWS))
    found = []
    for model in setting.MODELS:
        fit_s, kernels = timed(partial(fitting.fit, measured, setting.DEVICE, model))
        predict = partial(kernels.time_s, op, **many.shapes)
        predict()  # compiles
        predict_s = min(timed(predict)[0] for _ in range(3))
        found.append({"op": op, "model": model, "fit_s": fit_s, "predict_s": predict_s})
    return pd.DataFrame(found)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that *work* takes, and what it returns."""
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result
