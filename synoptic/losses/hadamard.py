"""Rotations that spread the variance evenly over all channels: Hadamard matrices, and what serves where none is known.

A Hadamard matrix has entries of +1 and -1 alone, and rows that are orthogonal to one another. Divided by sqrt(n) it is
a rotation each of whose rows takes an equal share of every direction, so that channels of any variances become channels
of equal variance. PHI-S rests on that (arXiv 2410.01680).
"""

from __future__ import annotations

from functools import cache
from math import copysign, isqrt, sqrt

import torch
from torch import Tensor


def is_known(order: int) -> bool:
    """Whether `hadamard` knows a matrix of +1 and -1 of this order."""
    return order >= 1 and _splits(order) is not None


def hadamard(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """An orthonormal matrix whose entries are of equal magnitude, as far as can be had.

    Args:
        n: its order, 1 or more.
        dtype: of the answer; computed in float64.
    Returns:
        (n, n), the same for the same n. Its entries are +-1/sqrt(n) where Sylvester's doubling, both of Paley's
        constructions for primes, or a Kronecker product of those reach n; else those of Hartley's transform, at most
        sqrt(2/n) in magnitude. No other orders than 1, 2 and multiples of 4 have a Hadamard matrix.
    Raises:
        ValueError: n is below 1.
    Source: Sylvester 1867; Paley 1933; Hartley 1942.
    """
    if n < 1:
        raise ValueError(f"n={n} should be 1 or more")
    orders = _splits(n)
    if orders is None:
        return _hartley(n).to(dtype)
    signs = torch.ones(1, 1, dtype=torch.float64)
    for order in orders:
        signs = torch.kron(signs, _signs(order))
    return (signs / n**0.5).to(dtype)


def levelling(variances: Tensor) -> Tensor:
    """The rotation after which uncorrelated channels of these variances all have the same one, their mean.

    Where a Hadamard matrix is known it does so whatever the variances are. Elsewhere Hartley's transform brings them
    near, and at most n - 1 rotations of two channels each (Givens) make them equal: each brings one of the two, which
    lie on both sides of the mean, to the mean. That they can is the theorem of Schur and Horn.

    Args:
        variances: (n,) float64, 0 or more.
    Returns:
        (n, n) float64, orthonormal; the diagonal of H diag(variances) H^T is constant. The same for the same variances.
    Source: Horn 1954, for a constant diagonal; the successive rotations as in Chan & Li 1983.
    """
    rotation = hadamard(len(variances))
    if not is_known(len(variances)):
        _level(rotation, variances.cpu())  # many small steps, which a GPU would wait for one by one
    return rotation.to(variances.device)


def _level(rotation: Tensor, variances: Tensor) -> None:
    """Turns a rotation in place, two channels at a time, until what comes out of it has equal variances."""
    shares = variances / variances.sum().clamp(min=torch.finfo(variances.dtype).tiny)  # none is too small to multiply
    covariance = rotation * shares @ rotation.T
    mean = shares.mean()
    for _ in range(len(variances) - 1):
        excess = covariance.diagonal() - mean
        high, low = int(excess.argmax()), int(excess.argmin())
        if excess[high] <= 0 or excess[low] >= 0:
            break
        pair = [high, low]
        turn = _turn(float(excess[high]), float(covariance[high, low]), float(excess[low])).to(rotation)
        rotation[pair] = turn @ rotation[pair]
        covariance[pair] = turn @ covariance[pair]
        covariance[:, pair] = covariance[:, pair] @ turn.T


def _turn(high: float, between: float, low: float) -> Tensor:
    """(2, 2) rotation after which the first of two channels has the mean variance.

    Args:
        high, low: their variances less the mean, above 0 and below 0.
        between: their covariance.
    """
    # The tangent t solves low t^2 + 2 between t + high = 0: of both roots the smaller, by what cancels nothing.
    root = sqrt(between * between - high * low)
    tangent = -high / (between + copysign(root, between))
    cosine = 1.0 / sqrt(1.0 + tangent * tangent)
    return torch.tensor([[cosine, cosine * tangent], [-cosine * tangent, cosine]], dtype=torch.float64)


@cache
def _splits(n: int) -> tuple[int, ...] | None:
    """Orders of matrices that are built by themselves, of which n is the product; None where there are none."""
    if n in (1, 2) or _paley_prime(n):
        return (n,)
    if n % 4:
        return None
    for factor in range(2, isqrt(n) + 1):
        if n % factor == 0:
            one, other = _splits(factor), _splits(n // factor)
            if one is not None and other is not None:
                return one + other
    return None


def _paley_prime(n: int) -> int:
    """The prime q of which Paley makes a matrix of order n, that is q + 1 or 2 (q + 1); 0 where there is none."""
    if n % 4:
        return 0
    if _is_prime(n - 1):  # 3 mod 4, as n is a multiple of 4
        return n - 1
    return n // 2 - 1 if (n // 2 - 1) % 4 == 1 and _is_prime(n // 2 - 1) else 0


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % factor for factor in range(2, isqrt(n) + 1))


def _signs(order: int) -> Tensor:
    """(n, n) of +1 and -1, for an order that is built by itself."""
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    double = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    if order == 2:
        return double
    prime = _paley_prime(order)
    core = _jacobsthal(prime)
    if order == prime + 1:  # Paley's first: the core is skew
        bordered = _bordered(core, -1.0)
        return bordered + torch.eye(order, dtype=torch.float64)
    bordered = _bordered(core, 1.0)  # his second: it is symmetric
    turned = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(bordered, double) + torch.kron(torch.eye(prime + 1, dtype=torch.float64), turned)


def _jacobsthal(prime: int) -> Tensor:
    """(q, q): +1 where i - j is a square other than 0 modulo q, -1 where it is none, 0 on the diagonal."""
    character = torch.full((prime,), -1.0, dtype=torch.float64)
    numbers = torch.arange(prime)
    character[numbers * numbers % prime] = 1.0
    character[0] = 0.0
    return character[(numbers[:, None] - numbers) % prime]


def _bordered(core: Tensor, left: float) -> Tensor:
    """(q + 1, q + 1): a first row of ones and a first column of `left` about the core, 0 in the corner."""
    size = len(core) + 1
    whole = torch.zeros(size, size, dtype=core.dtype)
    whole[0, 1:], whole[1:, 0], whole[1:, 1:] = 1.0, left, core
    return whole


def _hartley(n: int) -> Tensor:
    """(n, n) orthonormal: (cos a + sin a) / sqrt(n) with a = 2 pi i j / n."""
    numbers = torch.arange(n)
    angle = (numbers[:, None] * numbers % n).double() * (2.0 * torch.pi / n)  # whole turns are taken out while exact
    return (angle.cos() + angle.sin()) / n**0.5
