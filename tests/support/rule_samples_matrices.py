"""Calls of ops on batches of matrices, drawn at random; see `rule_samples`."""

from __future__ import annotations

import torch

from tests.support.rule_samples import Case, Sampler, _square, samples

aten = torch.ops.aten


def _matrices(s: Sampler) -> torch.Tensor:
    return _square(s, *s.shape(1, 2))


@samples(
    aten.linalg_inv_ex.default,
    aten.linalg_cholesky_ex.default,
    aten.linalg_lu_factor_ex.default,
    aten.linalg_lu.default,
    aten.linalg_ldl_factor_ex.default,
    aten.linalg_matrix_exp.default,
    aten._linalg_eigvals.default,
    aten._linalg_det.default,
    aten._linalg_slogdet.default,
)
def _one(s: Sampler) -> Case:
    return Case((_matrices(s),))


@samples(aten.linalg_qr.default)
def _qr(s: Sampler) -> Case:
    return Case((_matrices(s)[..., : s.one_of(2, 3)], s.one_of("reduced", "complete", "r")))


@samples(aten._linalg_eigh.default)
def _eigh(s: Sampler) -> Case:
    return Case((_matrices(s), "L", s.flag()))


@samples(aten._linalg_svd.default)
def _svd(s: Sampler) -> Case:
    return Case((_matrices(s)[..., :2], s.flag(), s.flag()))


@samples(aten.linalg_eig.default)
def _eig(s: Sampler) -> Case:
    return Case((_matrices(s).triu(),))


@samples(aten.cholesky_inverse.default)
def _cholesky_inverse(s: Sampler) -> Case:
    return Case((_matrices(s).tril(), False))


def _sides(s: Sampler, matrices: torch.Tensor) -> torch.Tensor:
    return s.floats(*matrices.shape[:-1], s.one_of(1, 2, 4))


@samples(aten.cholesky_solve.default)
def _cholesky_solve(s: Sampler) -> Case:
    matrices = _matrices(s).tril()
    return Case((_sides(s, matrices), matrices, False))


@samples(aten._linalg_solve_ex.default)
def _solve(s: Sampler) -> Case:
    matrices = _matrices(s)
    vectors = s.floats(*matrices.shape[:-1])
    spread = s.floats(*matrices.shape[-2:])  # in the place of a batch of them
    return Case((matrices, s.one_of(vectors, spread, _sides(s, matrices))))


@samples(aten.geqrf.default)
def _reflectors(s: Sampler) -> Case:
    return Case((_matrices(s)[..., : s.one_of(2, 3)],))


@samples(aten.ormqr.default)
def _reflected(s: Sampler) -> Case:
    matrices, scales = aten.geqrf(_matrices(s))
    return Case((matrices, scales, _sides(s, matrices), True, s.flag()))


@samples(aten.triangular_solve.default)
def _triangular(s: Sampler) -> Case:
    matrices = _matrices(s).tril()
    return Case((_sides(s, matrices), matrices, False, s.flag()))


@samples(aten.linalg_lu_solve.default)
def _lu_solve(s: Sampler) -> Case:
    factors, pivots, _ = aten.linalg_lu_factor_ex(_matrices(s))
    return Case((factors, pivots, _sides(s, factors)))


@samples(aten.lu_unpack.default)
def _lu_unpack(s: Sampler) -> Case:
    factors, pivots, _ = aten.linalg_lu_factor_ex(_matrices(s))
    return Case((factors, pivots, s.flag(), s.flag()))


@samples(aten.linalg_ldl_solve.default)
def _ldl_solve(s: Sampler) -> Case:
    factors, pivots, _ = aten.linalg_ldl_factor_ex(_matrices(s))
    return Case((factors, pivots, _sides(s, factors)))


@samples(aten.linalg_householder_product.default)
def _householder(s: Sampler) -> Case:
    matrices = _matrices(s)[..., : s.one_of(2, 3)]
    return Case((matrices, s.floats(*matrices.shape[:-2], matrices.shape[-1])))
