"""Teachers' features brought to one scale: their moments, gathered while training, and what is made of them.

Teachers differ a hundredfold in the spread of their features (PHI-S, arXiv 2410.01680, table 7), so that the plain
squared error listens to one of them alone. Here each learns a standard form of its own, in which the squared error of a
student that knows no more than the mean is 1.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from synoptic.losses.hadamard import levelling
from synoptic.losses.precision import wide
from synoptic.types import ALONE, Group

Standard = Literal["none", "global", "channel", "pca", "zca", "phi_s"]

_ROTATED = ("pca", "zca", "phi_s")  # these need the covariance, the others the variances alone
_FLOOR = 1e-5  # of the mean eigenvalue: no direction is whitened by more than 316 times what phi_s would divide by


class Moments(nn.Module):
    """Count, mean and scatter of all rows seen, in float64.

    Args:
        width: channels C.
        correlated: False leaves out how channels vary together, C x C numbers and the work for them.

    Attributes:
        count: scalar, rows seen.
        mean: (C,).
        scatter: (C, C) sum of the outer products of rows less their mean; (C,) its diagonal, unless `correlated`.
    """

    def __init__(self, width: int, correlated: bool = True):
        super().__init__()
        self.count: Tensor
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.scatter: Tensor
        self.register_buffer("scatter", torch.zeros((width,) * (2 if correlated else 1), dtype=torch.float64))

    @torch.no_grad()
    def update(self, rows: Tensor, group: Group = ALONE) -> None:
        """Takes in the rows of all processes.

        Args:
            rows: (N, C) of this process, any float dtype; N may differ between processes, and be 0.
            group: the processes. Two tensors are summed over them, of C + 1 numbers and of the size of `scatter`.
        Source: Chan, Golub & LeVeque 1983. Deviations are taken from the mean of the rows themselves, so that a mean
        far from zero costs no digits.
        """
        rows = rows.double()
        sums = group.sum(torch.cat((rows.sum(0), rows.new_full((1,), len(rows)))))
        count = sums[-1]
        mean = sums[:-1] / count.clamp(min=1.0)
        apart = rows - mean
        scatter = group.sum(apart.square().sum(0) if self.scatter.ndim == 1 else apart.T @ apart)
        step, total = mean - self.mean, (self.count + count).clamp(min=1.0)
        between = step.square() if self.scatter.ndim == 1 else torch.outer(step, step)
        self.scatter += scatter + between * (self.count * count / total)
        self.mean += step * (count / total)
        self.count += count

    def reset(self) -> None:
        """Forgets all rows."""
        for state in (self.count, self.mean, self.scatter):
            state.zero_()

    @property
    def rows(self) -> int:
        """How many rows were seen. Asking waits for the device."""
        return int(self.count)

    @property
    def covariance(self) -> Tensor:
        """(C, C) mean of the outer products of rows less their mean."""
        assert self.scatter.ndim == 2, "these moments are of each channel by itself"
        return self.scatter / self.count.clamp(min=1.0)

    @property
    def variances(self) -> Tensor:
        """(C,) mean square of rows less their mean."""
        scatter = self.scatter if self.scatter.ndim == 1 else self.scatter.diagonal()
        return scatter / self.count.clamp(min=1.0)


class Standardiser(nn.Module):
    """Carries a teacher's features into a standard form, and back.

    "none" leaves them as they are. "global" takes their mean away and divides by one number, "channel" each channel by
    its own, so that variances are 1 on average or each. "pca" and "zca" whiten: channels are uncorrelated and of
    variance 1, those of "zca" as near the teacher's own as can be. "phi_s" rotates so that all channels have the same
    variance and divides by one number: variances are 1, and errors in all directions still count alike.

    It starts as if it were "none": until `settle` is called, features are answered as they are. All state lies in
    buffers whose shapes never change, so that checkpoints hold it.

    Args:
        width: channels C of the features.
        kind: which form.

    Attributes:
        moments: of what was observed.
        centre: (C,) float64, what is taken away.
        projection: (C, C) float64, what is multiplied with then, a row a channel that comes out; (C,), a factor a
            channel, where the form knows no rotation.
        inverse: its inverse, of the same shape.

    Raises:
        ValueError: an unknown kind.
    Source: PHI-S (arXiv 2410.01680).
    """

    def __init__(self, width: int, kind: Standard):
        super().__init__()
        if kind not in get_args(Standard):
            raise ValueError(f"kind={kind!r} is none of {', '.join(get_args(Standard))}")
        self.width, self.kind = width, kind
        self.moments = Moments(width, correlated=kind in _ROTATED)
        neutral = torch.eye(width, dtype=torch.float64) if kind in _ROTATED else torch.ones(width, dtype=torch.float64)
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(width, dtype=torch.float64))
        self.projection: Tensor
        self.register_buffer("projection", neutral)
        self.inverse: Tensor
        self.register_buffer("inverse", neutral.clone())
        self.is_settled: Tensor
        self.register_buffer("is_settled", torch.tensor(kind == "none"))

    @property
    def settled(self) -> bool:
        """Whether features are standardised yet; always, where there is nothing to be done. Asking waits for the
        device."""
        return bool(self.is_settled)

    def observe(self, rows: Tensor, group: Group = ALONE) -> None:
        """Adds (N, C) features of this process, and those of the others, to the moments (see `Moments.update`)."""
        if self.kind != "none":
            self.moments.update(rows, group)

    def restart(self) -> None:
        """Forgets the moments, for a stage with other pictures; the projection stays until `settle` is called again."""
        self.moments.reset()

    @torch.no_grad()
    def settle(self, group: Group = ALONE) -> None:
        """Makes mean and projection anew of the moments; the first process decomposes, for all.

        Raises:
            ValueError: too few rows were observed, or some that are not finite.
        """
        if self.kind == "none":
            return
        self._check()
        states = (self.centre, self.projection, self.inverse)
        made = [torch.zeros_like(state) for state in states]
        if group.rank == 0:  # eigenvectors that two processes find by themselves may differ
            made = [self.moments.mean, *self._projections()]
        for state, value in zip(states, made, strict=True):
            state.copy_(group.sum(value.contiguous()))
        self.is_settled.fill_(True)

    def forward(self, features: Tensor) -> Tensor:
        """(..., C) features in standard form, float32, or float64 where such come in."""
        with torch.autocast(features.device.type, enabled=False):
            features = wide(features)
            # A mean of many times the deviation, rounded to float32, would be off by a part of it: the rest of it too.
            near = self.centre.to(features.dtype)
            return _applied(self.projection, features - near - (self.centre - near).to(features.dtype))

    def invert(self, standardised: Tensor) -> Tensor:
        """(..., C) features of the teacher's own that have this standard form, float32, or float64 for such."""
        with torch.autocast(standardised.device.type, enabled=False):
            standardised = wide(standardised)
            return _applied(self.inverse, standardised) + self.centre.to(standardised.dtype)

    @torch.no_grad()
    def fold(self, last: nn.Linear) -> None:
        """Lets a head answer in the teacher's own space: changes its last layer, which answered in standard form.

        Args:
            last: with a bias; C channels go out. Its weights are its own, not computed by a parametrisation.
        Source: PHI-S (arXiv 2410.01680), appendix A.6.
        """
        weight, bias = last._parameters.get("weight"), last._parameters.get("bias")
        assert weight is not None and bias is not None, "the last layer needs weights of its own, and a bias"
        assert len(weight) == self.width, f"the last layer has {len(weight)} channels, the teacher {self.width}"
        whole = torch.cat((weight, bias[:, None]), dim=1).double()
        whole = self.inverse @ whole if self.inverse.ndim == 2 else self.inverse[:, None] * whole
        weight.copy_(whole[:, :-1])
        bias.copy_(whole[:, -1] + self.centre)

    @torch.no_grad()
    def unfold(self, last: nn.Linear) -> None:
        """The way back of `fold`: lets a head that answers in the teacher's own space answer in standard form."""
        weight, bias = last._parameters.get("weight"), last._parameters.get("bias")
        assert weight is not None and bias is not None, "the last layer needs weights of its own, and a bias"
        whole = torch.cat((weight.double(), (bias.double() - self.centre)[:, None]), dim=1)
        whole = self.projection @ whole if self.projection.ndim == 2 else self.projection[:, None] * whole
        weight.copy_(whole[:, :-1])
        bias.copy_(whole[:, -1])

    def _check(self) -> None:
        rows, whitens = self.moments.rows, self.kind in ("pca", "zca")
        needed = self.width + 1 if whitens else 2
        if rows < needed:
            mend = "or take phi_s or channel, which do with 2" if whitens else "at least"
            told = f"{rows} features of {self.width} channels were observed"
            raise ValueError(f"standardise={self.kind}: {told}; observe {needed} {mend}")
        if not self.moments.mean.isfinite().all():
            raise ValueError(
                f"standardise={self.kind}: not all features that were observed are finite; look at the teacher"
            )

    def _projections(self) -> tuple[Tensor, Tensor]:
        """The projection and its inverse, after the moments."""
        variances = self.moments.variances
        # Below the rounding of float32 numbers of this size a variance says nothing: the channel is constant.
        noise = torch.finfo(torch.float32).eps ** 2 * self.moments.mean.square()
        common = torch.where(variances.mean() > noise.mean(), variances.mean(), 1.0).sqrt()
        if self.kind == "channel":
            deviations = torch.where(variances > noise, variances.sqrt(), common)
            return 1.0 / deviations, deviations
        if self.kind == "global":
            return (1.0 / common).expand(self.width), common.expand(self.width)
        values, vectors = _eigen(self.moments.covariance)
        if self.kind == "phi_s":
            rotation = levelling(values) @ vectors.T
            return rotation / common, rotation.T * common
        deviations = values.clamp(min=_FLOOR * common.square()).sqrt()
        back = vectors if self.kind == "zca" else torch.eye(self.width).to(vectors)
        return back / deviations @ vectors.T, vectors * deviations @ back.T


def _applied(matrix: Tensor, features: Tensor) -> Tensor:
    matrix = matrix.to(features.dtype)
    return features @ matrix.T if matrix.ndim == 2 else features * matrix


def _eigen(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, the largest first, 0 or more, and the eigenvectors in columns, each of a sign that does not depend
    on how it was found: its largest entry is positive."""
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return values, vectors * largest.sign()
