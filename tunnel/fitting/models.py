"""The shapes of the loss that the engine fits, in centred logs z:

    Sum     L̂ = E + Σ Aⱼ·exp(−αⱼ·zⱼ)                                 powers, with a floor E or without
    Norm    L̂ = E + S·exp(β·logaddexp((r/2 − α·z₁)/β, (−r/2 − β·z₂)/β))   a floor and Kaplan's norm of two
    Product L̂ = E + A·exp(−α·z₁ − γ·z₃) + B·exp(−β·z₂)               a floor and two powers, one of two columns

theta is (E where there is a floor, the coefficients, k exponents). What enters linearly is no logarithm, so that a
floor or a term that the data does not show is reached, at its bound 0, in a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np

from tunnel.laws import Array

# exponents; assumed: far outside anything measured (0.03-1.2), so a hit means that there is no fit
LOWEST, HIGHEST = 1e-3, 4.0
MOST = 20.0  # a term may be this many times the largest loss at the table's centre; assumed: never met
TRIED = (0.008, 3.2)  # exponents of the grid; assumed: what is published lies in 0.03-1.2
# exponents per axis for one to four powers; measured here: 18² finds every optimum of our tables
GRID = {1: 40, 2: 18, 3: 8, 4: 5}
LOPSIDED = 50.0  # balance of a norm; assumed: e^-50 of a loss is beyond notice
NORM_GRID, BALANCES = 12, 5  # exponents per axis, and balances of the two terms of a norm; measured here


class Model(Protocol):
    """log L̂ as a function of theta (R, P) and z (k, n), and the grid from which a fit starts."""

    @property
    def k(self) -> int:
        """Exponents."""

    @property
    def floor(self) -> bool:
        """Whether there is an E."""

    @property
    def linear(self) -> int:
        """Leading parameters in which L̂ is linear."""

    def derive(self, theta: Array, z: Array) -> tuple[Array, Array, Any]:
        """log L̂ (R, n), its Jacobian (R, P, n), and what `second` wants to see again."""

    def second(self, z: Array, jacobian: Array, kept: Any, v: Array) -> Array:
        """Σ v·(∂²L̂/∂θ²)/L̂ over the rows, (R, P, P); v (R, n)."""

    def box(self, low: float, high: float) -> tuple[Array, Array]:
        """The lowest and highest theta (P,) of a search where losses lie from low to high."""

    def cells(self, z: Array) -> tuple[Array, tuple[int, ...]]:
        """theta (G, P) of every cell of the grid, its coefficients 1, and the grid's shape."""

    def basis(self, theta: Array, z: Array) -> tuple[Array, Array]:
        """What m coefficients multiply, (G, m, n), each scaled to a largest value of 1; the logs of the scales."""

    def scaled(self, theta: Array, factors: Array) -> Array:
        """theta with its parts of the basis multiplied by factors (G, m)."""


@dataclass(frozen=True)
class Sum:
    """A floor (or none) and k powers: the terms' shares of L̂ are its derivatives."""

    k: int
    floor: bool = True

    @property
    def linear(self) -> int:
        return self.k + int(self.floor)

    def derive(self, theta: Array, z: Array) -> tuple[Array, Array, Any]:
        k, e = self.k, int(self.floor)
        part = np.empty((len(theta), theta.shape[1], z.shape[1]))
        total = np.zeros((len(theta), z.shape[1])) + (theta[:, :1] if e else 0.0)
        for j in range(k):
            np.exp(-theta[:, e + k + j, None] * z[j], out=part[:, e + j])
            total = total + theta[:, e + j, None] * part[:, e + j]
        part[:, e : e + k] /= total[:, None]
        if e:
            part[:, 0] = 1 / total
        for j in range(k):
            np.multiply(part[:, e + j], -theta[:, e + j, None] * z[j], out=part[:, e + k + j])
        return np.log(total), part, None

    def second(self, z: Array, jacobian: Array, kept: Any, v: Array) -> Array:
        k, e, size = self.k, int(self.floor), jacobian.shape[1]
        out = np.zeros((len(v), size, size))
        for j in range(k):
            a, s = e + j, e + k + j
            out[:, a, s] = out[:, s, a] = -((v * jacobian[:, a]) @ z[j])
            out[:, s, s] = -((v * jacobian[:, s]) @ z[j])
        return out

    def box(self, low: float, high: float) -> tuple[Array, Array]:
        k, e = self.k, int(self.floor)
        return np.repeat([0.0, 0.0, LOWEST], [e, k, k]), np.repeat([high, MOST * high, HIGHEST], [e, k, k])

    def cells(self, z: Array) -> tuple[Array, tuple[int, ...]]:
        axis = np.geomspace(*TRIED, GRID[self.k])
        points = np.array(list(product(axis, repeat=self.k)))
        theta = np.ones((len(points), int(self.floor) + 2 * self.k))
        theta[:, -self.k :] = points
        return theta, (len(axis),) * self.k

    def basis(self, theta: Array, z: Array) -> tuple[Array, Array]:
        return _unit(-theta[:, -self.k :, None] * z, self.floor)

    def scaled(self, theta: Array, factors: Array) -> Array:
        return np.concatenate([theta[:, : -self.k] * factors, theta[:, -self.k :]], axis=1)


@dataclass(frozen=True)
class Norm:
    """A floor and S·X, X = exp(β·logaddexp(s, t)) with s = (r/2 − α·z₁)/β and t = (−r/2)/β − z₂.

    r is the balance of the two terms. β·logaddexp(s, t) is a perspective of logaddexp: its second derivative has rank
    one (derived).
    """

    k: int = 2
    floor: bool = True
    linear: int = 2

    def derive(self, theta: Array, z: Array) -> tuple[Array, Array, Any]:
        apart, q, joint = self._joint(theta, z)
        half, beta = 0.5 * theta[:, 2, None], theta[:, 4:]
        x = np.exp(beta * joint)
        total = theta[:, :1] + theta[:, 1, None] * x
        inner = np.empty((len(theta), 3, z.shape[1]))  # of log X by r, α and β
        inner[:, 0], inner[:, 1], inner[:, 2] = q - 0.5, -z[0] * q, joint + half / beta + q * (apart + z[1])
        jacobian = np.empty((len(theta), 5, z.shape[1]))
        np.divide(1, total, out=jacobian[:, 0])
        np.divide(x, total, out=jacobian[:, 1])
        share = theta[:, 1, None] * jacobian[:, 1]
        np.multiply(share[:, None], inner, out=jacobian[:, 2:])
        return np.log(total), jacobian, (share, inner, q * (1 - q) / beta, apart)

    def _joint(self, theta: Array, z: Array) -> tuple[Array, Array, Array]:
        """t − s, the share of s, and logaddexp(s, t)."""
        half, alpha, beta = 0.5 * theta[:, 2, None], theta[:, 3, None], theta[:, 4, None]
        s = (half - alpha * z[0]) / beta
        apart = -half / beta - z[1] - s
        less = np.exp(-np.abs(apart))
        return apart, np.where(apart > 0, less, 1.0) / (1 + less), s + np.maximum(apart, 0) + np.log1p(less)

    def second(self, z: Array, jacobian: Array, kept: Any, v: Array) -> Array:
        share, inner, bend, apart = kept
        across = np.empty_like(inner)
        across[:, 0], across[:, 1], across[:, 2] = 1, -z[0], z[1] + apart
        out = np.zeros((len(v), 5, 5))
        out[:, 2:, 2:] = (inner * (v * share)[:, None]) @ inner.transpose(0, 2, 1)
        out[:, 2:, 2:] += (across * (v * share * bend)[:, None]) @ across.transpose(0, 2, 1)
        out[:, 1, 2:] = out[:, 2:, 1] = (inner @ (v * jacobian[:, 1])[:, :, None])[:, :, 0]
        return out

    def box(self, low: float, high: float) -> tuple[Array, Array]:
        return np.array([0.0, 0.0, -LOPSIDED, LOWEST, LOWEST]), np.array(
            [high, MOST * high, LOPSIDED, HIGHEST, HIGHEST]
        )

    def cells(self, z: Array) -> tuple[Array, tuple[int, ...]]:
        axis = np.geomspace(*TRIED, NORM_GRID)
        points = np.array(list(product(axis, axis, np.linspace(-1, 1, BALANCES))))
        # at an end of the balance one term is the larger on every row
        balance = points[:, 2] * (points[:, :2] @ np.abs(z).max(axis=1))
        one = np.ones(len(points))
        return np.stack([one, one, balance, points[:, 0], points[:, 1]], axis=1), (NORM_GRID, NORM_GRID, BALANCES)

    def basis(self, theta: Array, z: Array) -> tuple[Array, Array]:
        return _unit((theta[:, 4:] * self._joint(theta, z)[2])[:, None], self.floor)

    def scaled(self, theta: Array, factors: Array) -> Array:
        return np.concatenate([theta[:, :2] * factors, theta[:, 2:]], axis=1)


@dataclass(frozen=True)
class Product:
    """A floor and two powers; a third column multiplies into the first."""

    k: int = 3
    floor: bool = True
    linear: int = 3

    def _powers(self, theta: Array, z: Array) -> Array:
        """Logs of both powers (R, 2, n), without their coefficients."""
        first = theta[:, 3, None] * z[0] + theta[:, 5, None] * z[2]
        return -np.stack([first, theta[:, 4, None] * z[1]], axis=1)

    def derive(self, theta: Array, z: Array) -> tuple[Array, Array, Any]:
        powers = np.exp(self._powers(theta, z))
        total = theta[:, :1] + (theta[:, 1:3, None] * powers).sum(axis=1)
        jacobian = np.empty((len(theta), 6, z.shape[1]))
        jacobian[:, 0] = 1 / total
        jacobian[:, 1:3] = powers / total[:, None]
        for exponent, coefficient in ((3, 1), (4, 2), (5, 1)):
            jacobian[:, exponent] = -theta[:, coefficient, None] * jacobian[:, coefficient] * z[exponent - 3]
        return np.log(total), jacobian, None

    def second(self, z: Array, jacobian: Array, kept: Any, v: Array) -> Array:
        out = np.zeros((len(v), 6, 6))
        for a, b in ((1, 3), (1, 5), (2, 4), (3, 3), (3, 5), (4, 4), (5, 5)):  # by a, and by the exponent b
            out[:, a, b] = out[:, b, a] = -((v * jacobian[:, a]) @ z[b - 3])
        return out

    def box(self, low: float, high: float) -> tuple[Array, Array]:
        return np.repeat([0.0, LOWEST], 3), np.array([high, MOST * high, MOST * high, HIGHEST, HIGHEST, HIGHEST])

    def cells(self, z: Array) -> tuple[Array, tuple[int, ...]]:
        axis, few = np.geomspace(*TRIED, NORM_GRID), np.geomspace(*TRIED, BALANCES)
        theta = np.ones((len(axis) ** 2 * len(few), 6))
        theta[:, 3:] = list(product(axis, axis, few))
        return theta, (len(axis), len(axis), len(few))

    def basis(self, theta: Array, z: Array) -> tuple[Array, Array]:
        return _unit(self._powers(theta, z), self.floor)

    def scaled(self, theta: Array, factors: Array) -> Array:
        return np.concatenate([theta[:, :3] * factors, theta[:, 3:]], axis=1)


def _unit(logs: Array, floor: bool) -> tuple[Array, Array]:
    """A floor's 1 and exp(logs) (G, m, n) over their largest values; the logs of those."""
    shift = logs.max(axis=2)  # no overflow, and a ridge means the same for every term
    basis = np.exp(logs - shift[:, :, None])
    if not floor:
        return basis, shift
    one = np.ones((len(basis), 1, basis.shape[2]))
    return np.concatenate([one, basis], axis=1), np.concatenate([np.zeros((len(basis), 1)), shift], axis=1)
