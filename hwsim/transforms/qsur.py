"""QSUR, how much of the range of a quantizer activations use (Hu et al., "OSTQuant", 2025)."""

from __future__ import annotations

from math import exp, lgamma, log, pi

import numpy as np
from numpy.typing import NDArray

from hwsim.transforms.maps import require_whole
from models.unit import require


def qsur(X: NDArray[np.float64], alpha: float = 0.99) -> float:
    """QSUR^(1/d) of activations X [M, d]: the volume of their ellipsoid over that of the smallest cube around it.

    The ellipsoid holds the share `alpha` of a normal distribution of the samples' mean and covariance S:
    V_X = pi^(d/2) / Gamma(d/2 + 1) c^(d/2) sqrt(det S) with c the chi-squared quantile of d degrees; the cube's side is
    max_j(mu_j + sqrt(c S_jj)) - min_j(mu_j - sqrt(c S_jj)). In logs, as both leave what float64 holds. 0 where S is
    singular. InputError unless X is a matrix of finite values with more samples than channels.
    """
    require(X.ndim == 2 and X.shape[1] > 0, f"qsur: activations of shape {X.shape}; [M, d] are needed")
    require(bool(np.isfinite(X).all()), "qsur: the activations are not all finite")
    rows, d = X.shape
    require(rows > d, f"qsur: {rows} samples of {d} channels have no covariance of full rank; more samples are needed")
    mean, S = X.mean(axis=0), np.atleast_2d(np.cov(X, rowvar=False))
    sign, log_det = np.linalg.slogdet(S)
    c = chi2_quantile(alpha, d)
    reach = np.sqrt(c * np.diagonal(S))
    side = float((mean + reach).max() - (mean - reach).min())
    if sign <= 0 or side == 0:
        return 0.0
    log_volume = d / 2 * log(pi) - lgamma(d / 2 + 1) + d / 2 * log(c) + log_det / 2
    return exp(float(log_volume) / d - log(side))


def chi2_quantile(share: float, d: int) -> float:
    """The c below which a chi-squared variable of d degrees stays with probability `share`, above 0 and below 1."""
    number = isinstance(share, (float, np.floating))
    require(number and 0 < share < 1, f"qsur: alpha={share!r} must be a number between 0 and 1, such as 0.99")
    require_whole("qsur: degrees", d, 1)
    low, high = 0.0, d + 40.0
    while _chi2_share(high, d) < share:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _chi2_share(middle, d) < share else (low, middle)
    return (low + high) / 2


def _chi2_share(c: float, d: int) -> float:
    """Lower incomplete gamma function P(d/2, c/2) by its series, whose terms are all positive."""
    a, x = d / 2, c / 2
    if x == 0:
        return 0.0
    count = int(x + 20 * np.sqrt(x + 1)) + 200
    logs = np.cumsum(np.log(x) - np.log(a + np.arange(1, count)))
    terms = np.concatenate([[0.0], logs]) + a * log(x) - x - lgamma(a + 1)
    return float(np.exp(terms).sum())
