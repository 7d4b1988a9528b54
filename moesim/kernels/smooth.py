"""A smooth function through noisy points: the mean of a Gaussian process, whose lengths and noise the points say.

Matern 3/2 covariance, one length per size (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006,
section 4.2). Lengths, amplitude and noise maximise the posterior (section 5.4.1) under wide log-normal priors. Points
far from what all others say (a disturbed measurement) count less. Far from all points the function is 0.

>>> x = np.linspace(0, 4, 30)[:, None]
>>> lengths, weights = fit(x, np.sin(x[:, 0]), seed=0)
>>> bool(np.abs(value(x, weights, lengths, np.array([[1.5], [40.0]])) - [np.sin(1.5), 0]).max() < 0.02)
True
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

MOST = 600       # points; of more, so many at random: the effort grows with the cube of their number
_LENGTH = 2.0    # prior median, in the units of x (octaves, for kernels), with a factor of e either way
_AMPLITUDE = 0.3  # prior medians of a function of logarithms: 30 %
_NOISE = 0.05     # and 5 %
_LEAST = 0.005    # noise: no measurement is better
_FAR = 2.0        # noises from what all others say; from there on a point counts less
_ROUNDS = 5       # of weighing points
_CHUNK = 2048     # rows of a prediction at once


def fit(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return lengths [sizes] and a weight for each point [points] (0: left out) from *x* [points, sizes], *y*."""
    weights = np.zeros(len(y))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(y))[:MOST])
    x, y = x[chosen], y[chosen]
    theta, wider = np.log([_LENGTH] * x.shape[1] + [_AMPLITUDE, _NOISE]), np.ones(len(y))
    for _ in range(_ROUNDS):
        theta = minimize(_loss, theta, (x, y, wider), method="L-BFGS-B", options={"maxiter": 40}).x
        covariance = _covariance(theta, x, wider)
        inverse = cho_solve(cho_factor(covariance, lower=True), np.eye(len(y)))
        away = np.abs(inverse @ y) / np.sqrt(np.diag(inverse))  # of each point from the others' prediction of it
        wider = np.maximum(away**2 * wider / _FAR**2, 1.0)
    weights[chosen] = np.exp(2 * theta[-2]) * (inverse @ y)
    return np.exp(theta[:-2]), weights


def value(x: np.ndarray, weights: np.ndarray, lengths: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return the function at *asked* [rows, sizes] from points *x* with *weights*, both as ``fit`` has them."""
    out = np.empty(len(asked))
    for at in range(0, len(asked), _CHUNK):
        out[at : at + _CHUNK] = _matern(asked[at : at + _CHUNK] / lengths, x / lengths) @ weights
    return out


def _matern(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squared = (a**2).sum(-1)[:, None] + (b**2).sum(-1) - 2 * a @ b.T
    far = np.sqrt(3 * np.maximum(squared, 0))
    return (1 + far) * np.exp(-far)


def _covariance(theta: np.ndarray, x: np.ndarray, wider: np.ndarray) -> np.ndarray:
    """Return the covariance of the points, their noise included; *theta*: logarithms of lengths, amplitude, noise."""
    scaled = x / np.exp(theta[:-2])
    noise = np.maximum(np.exp(theta[-1]), _LEAST)
    return np.exp(2 * theta[-2]) * _matern(scaled, scaled) + np.diag(noise**2 * wider)


def _loss(theta: np.ndarray, x: np.ndarray, y: np.ndarray, wider: np.ndarray) -> float:
    """Return the negative logarithm of the posterior."""
    prior = ((theta - np.log([_LENGTH] * (len(theta) - 2) + [_AMPLITUDE, _NOISE])) ** 2).sum() / 2
    try:
        factor = np.linalg.cholesky(_covariance(theta, x, wider))
    except np.linalg.LinAlgError:
        return 1e10
    white = solve_triangular(factor, y, lower=True)
    return float(white @ white / 2 + np.log(np.diag(factor)).sum() + prior)
