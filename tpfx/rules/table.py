"""The table of ops: one row each, in the notation of `rule`.

Pointwise ops need no row: they are recognised by their tag. Rows whose meaning depends on arguments name a
function of `views`, `reductions`, `indexing`, and so on. `rule_for` answers None for an op that nobody has
described: it runs whole on every rank.
"""

from __future__ import annotations

from typing import Any

import torch

from ..torch_internals.fx import OpOverload
from . import backward, images, indexing, pointwise, quantized, reductions, views, whole_dims
from .rule import Lowering, Rule

aten, higher_order = torch.ops.aten, torch.ops.higher_order
FIRST = ((0,),)  # linear in the first operand
BOTH = ((0,), (1,))  # linear in either of two operands, not in both at once


def family(rule: Rule, *ops: Any) -> dict[Any, Rule]:
    """Rows of ops that have one rule."""
    return dict.fromkeys(ops, rule)


_MATRIX_PRODUCTS = {
    aten.linear.default: Rule(reductions.linear, lower=Lowering.LINEAR),
    aten.mm.default: Rule("m k, k n -> m n", BOTH),
    aten._int_mm.default: Rule("m k, k n -> m n"),  # partial sums of its operands would overflow
    aten.bmm.default: Rule("b m k, b k n -> b m n", BOTH),
    aten.mv.default: Rule("m k, k -> m", BOTH),
    aten.dot.default: Rule("k, k ->", BOTH),
    aten.baddbmm.default: Rule(reductions.baddbmm),
    aten._cdist_forward.default: Rule("... m k!, ... n k! -> ... m n"),
    aten._cdist_backward.default: Rule(
        "... m n, ... m k, ... n k, ... m n -> ... m k", pad_empty_shards=True
    ),
    aten.linalg_solve_triangular.default: Rule(reductions.solve, pad_empty_shards=True),
}

# Matrices whole, batches of them divided.
_MATRICES = family(
    Rule(reductions.matrices, contiguous=True),
    aten.linalg_inv_ex.default,
    aten.linalg_cholesky_ex.default,
    aten.cholesky_inverse.default,
    aten.cholesky_solve.default,
    aten.linalg_lu_factor_ex.default,
    aten.linalg_lu.default,
    aten.linalg_lu_solve.default,
    aten.lu_unpack.default,
    aten.linalg_ldl_factor_ex.default,
    aten.linalg_ldl_solve.default,
    aten.linalg_qr.default,
    aten.linalg_householder_product.default,
    aten.linalg_matrix_exp.default,
    aten.linalg_eig.default,
    aten._linalg_eigh.default,
    aten._linalg_eigvals.default,
    aten._linalg_svd.default,
    aten._linalg_det.default,
    aten._linalg_slogdet.default,
    aten._linalg_solve_ex.default,
    aten.geqrf.default,
    aten.ormqr.default,
    aten.triangular_solve.default,
)

# Their kernels read rows without asking for strides: who calls attention has chosen one that can.
_ATTENTION = family(
    Rule(reductions.attention, pad_empty_shards=True, dense_rows=("query", "key", "value")),
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
)

# Lookups, and writes by index.
_INDEXING = {
    aten.embedding.default: Rule("v d, ... -> ... d", FIRST, lower=Lowering.EMBEDDING),
    aten._embedding_bag.default: Rule(indexing.embedding_bag, pad_empty_shards=True),
    aten._embedding_bag_forward_only.default: Rule(indexing.embedding_bag, pad_empty_shards=True),
    aten.segment_reduce.default: Rule(indexing.segments, pad_empty_shards=True),
    aten.index_select.default: Rule(indexing.index_select, FIRST),
    aten.gather.default: Rule(indexing.gather, FIRST, lower=Lowering.GATHER),
    aten.index.Tensor: Rule(indexing.index, FIRST),
    aten.index_put.default: Rule(indexing.index_put),
    aten._unsafe_index_put.default: Rule(indexing.index_put),
    aten.index_copy.default: Rule(indexing.index_copy),
    aten.index_reduce.default: Rule(indexing.index_copy),
    aten.index_add.default: Rule(indexing.index_add),
    aten.index_fill.int_Scalar: Rule(indexing.index_fill),
    aten.index_fill.int_Tensor: Rule(indexing.index_fill),
    aten.slice_scatter.default: Rule(indexing.slice_scatter),
    aten.select_scatter.default: Rule(indexing.slice_scatter),
    aten.scatter.src: Rule(indexing.scatter_to_shards, lower=Lowering.SCATTER),
    aten.scatter.value: Rule(indexing.scatter_to_shards, lower=Lowering.SCATTER),
    aten.scatter_add.default: Rule(indexing.scatter_to_shards, lower=Lowering.SCATTER),
    aten.scatter.reduce: Rule(indexing.scatter),
    aten.scatter.value_reduce: Rule(indexing.scatter),
    aten.scatter_reduce.two: Rule(indexing.scatter),
    aten.isin.Tensor_Tensor: Rule(indexing.isin),
    aten.take.default: Rule(indexing.take, FIRST),
    aten.bucketize.Tensor: Rule("..., s! -> ..."),
    aten.searchsorted.Tensor: Rule(indexing.searchsorted),
}

_NORMALISATION = {
    aten.native_layer_norm.default: Rule(reductions.norm),
    aten._fused_rms_norm.default: Rule(reductions.norm),
    aten._softmax.default: Rule(reductions.along),
    aten._safe_softmax.default: Rule(reductions.along),
    aten._log_softmax.default: Rule(reductions.along),
    aten.native_group_norm.default: Rule(
        reductions.group_norm, lower=Lowering.GROUP_NORM, pad_empty_shards=True, contiguous=True
    ),
    aten._native_batch_norm_legit_no_training.default: Rule(reductions.batch_norm, pad_empty_shards=True),
    aten._native_batch_norm_legit.no_stats: Rule(reductions.batch_norm, pad_empty_shards=True),
    aten._native_batch_norm_legit_functional.default: Rule(reductions.batch_norm, pad_empty_shards=True),
}

_GRADIENTS = {
    aten.slice_backward.default: Rule(backward.slice_backward, lower=Lowering.SLICE_BACKWARD),
    aten.embedding_dense_backward.default: Rule(
        backward.embedding_backward, lower=Lowering.EMBEDDING_BACKWARD
    ),
    aten._embedding_bag_backward.default: Rule(backward.embedding_bag_backward, FIRST, pad_empty_shards=True),
    aten._embedding_bag_per_sample_weights_backward.default: Rule(
        "b! d, v! d, n!, o!, s! -> n", BOTH, pad_empty_shards=True
    ),
    aten.diagonal_backward.default: Rule(backward.diagonal_backward, FIRST, shape="input_sizes"),
    aten.silu_backward.default: Rule(pointwise.pointwise, FIRST),
    aten.mish_backward.default: Rule(pointwise.pointwise, FIRST),
    aten._segment_reduce_backward.default: Rule(indexing.segments, pad_empty_shards=True),
    aten.multi_margin_loss_backward.default: Rule(backward.margin_backward, pad_empty_shards=True),
    aten.multilabel_margin_loss_backward.default: Rule(backward.margin_backward, pad_empty_shards=True),
    aten._softmax_backward_data.default: Rule(backward.softmax_backward),
    **family(
        Rule(backward.norm_backward, pad_empty_shards=True, contiguous=True),
        aten.native_layer_norm_backward.default,
        aten._fused_rms_norm_backward.default,
    ),
    **family(
        Rule(backward.attention_backward, pad_empty_shards=True, contiguous=True),
        aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
        aten._scaled_dot_product_flash_attention_backward.default,
        aten._scaled_dot_product_cudnn_attention_backward.default,
    ),
    # The kernel asks no strides of what the forward pass gave: it takes that to lie as it left it.
    aten._scaled_dot_product_efficient_attention_backward.default: Rule(
        backward.attention_backward,
        pad_empty_shards=True,
        contiguous=True,
        memory_order=(("out", (0, 2, 1, 3)),),
    ),
}

_SPECTRA = family(
    Rule(reductions.along, pad_empty_shards=True),
    aten._fft_c2c.default,
    aten._fft_r2c.default,
    aten._fft_c2r.default,
)

_REDUCTIONS = {
    aten.sum.dim_IntList: Rule(reductions.reduction),
    aten.sum.default: Rule(reductions.reduction),
    aten.mean.dim: Rule(reductions.reduction, lower=Lowering.MEAN),
    aten.mean.default: Rule(reductions.reduction, lower=Lowering.MEAN),
    aten.amax.default: Rule(reductions.reduction, lower=Lowering.EXTREME),
    aten.amin.default: Rule(reductions.reduction, lower=Lowering.EXTREME),
    **family(
        Rule(reductions.along_gone),
        aten.any.default,
        aten.any.dim,
        aten.any.dims,
        aten.all.default,
        aten.all.dim,
        aten.all.dims,
        aten.max.default,
        aten.max.dim,
        aten.min.default,
        aten.min.dim,
        aten.argmax.default,
        aten.argmin.default,
        aten.median.default,
        aten.median.dim,
        aten.nanmedian.default,
        aten.nanmedian.dim,
        aten.mode.default,
        aten.kthvalue.default,
        aten.logsumexp.default,
        aten.prod.default,
        aten.prod.dim_int,
        aten.var.correction,
        aten.var_mean.correction,
        aten.std.correction,
        aten.std_mean.correction,
        aten.norm.ScalarOpt_dim,
        aten.linalg_vector_norm.default,
        aten.count_nonzero.dim_IntList,
        aten.histc.default,
        aten.hash_tensor.default,
    ),
}

_ALONG_A_DIMENSION = {
    aten.cumsum.default: Rule(reductions.cumsum),
    aten.cumprod.default: Rule(reductions.along),
    aten.cummax.default: Rule(reductions.along),
    aten.cummin.default: Rule(reductions.along),
    aten.logcumsumexp.default: Rule(reductions.along),
    aten.glu.default: Rule(reductions.along),
    aten.sort.default: Rule(reductions.along),
    aten.sort.stable: Rule(reductions.along),
    aten.topk.default: Rule(reductions.along),
    aten.flip.default: Rule(reductions.along, FIRST),
    aten.roll.default: Rule(reductions.along, FIRST),
    aten.triu.default: Rule("... r! c! -> ... r c", FIRST),
    aten.tril.default: Rule("... r! c! -> ... r c", FIRST),
    aten.constant_pad_nd.default: Rule(views.pad),
}

_VIEWS = {
    aten.view.default: Rule(views.view, FIRST, shape="size"),
    aten._unsafe_view.default: Rule(views.view, FIRST, shape="size"),
    aten.reshape.default: Rule(views.view, FIRST, shape="shape"),
    aten.t.default: Rule(views.permute, FIRST),
    aten.transpose.int: Rule(views.permute, FIRST),
    aten.permute.default: Rule(views.permute, FIRST),
    aten.unsqueeze.default: Rule(views.unsqueeze, FIRST),
    aten.squeeze.default: Rule(views.squeeze, FIRST, lower=Lowering.SQUEEZE),
    aten.squeeze.dim: Rule(views.squeeze, FIRST, lower=Lowering.SQUEEZE),
    aten.squeeze.dims: Rule(views.squeeze, FIRST, lower=Lowering.SQUEEZE),
    aten.expand.default: Rule(views.expand, FIRST, shape="size"),
    aten.repeat.default: Rule(views.repeat, FIRST),
    aten.cat.default: Rule(views.cat),
    aten.stack.default: Rule(views.stack),
    aten.slice.Tensor: Rule(views.slice_, FIRST, lower=Lowering.SLICE),
    aten.select.int: Rule(views.select, FIRST, lower=Lowering.SELECT),
    aten.split.Tensor: Rule(views.split, FIRST, lower=Lowering.SPLIT),
    aten.split_with_sizes.default: Rule(views.split, FIRST, lower=Lowering.SPLIT),
    aten.unsafe_split.Tensor: Rule(views.split, FIRST, lower=Lowering.SPLIT),
    aten.unsafe_split_with_sizes.default: Rule(views.split, FIRST, lower=Lowering.SPLIT),
    aten.unbind.int: Rule(views.unbind, FIRST),
    aten.diagonal.default: Rule(views.diagonal, FIRST),
    aten.diagonal_copy.default: Rule(views.diagonal, FIRST),
    aten.diagonal_scatter.default: Rule(indexing.diagonal_scatter),
    aten.diag_embed.default: Rule(views.diag_embed, FIRST),
    aten.unfold.default: Rule(views.windows, FIRST),
    aten.view_as_real.default: Rule("... -> ... p!"),
    aten.view_as_complex.default: Rule("... p! -> ...", pad_empty_shards=True, contiguous=True),
    aten.view.dtype: Rule(views.view_dtype, pad_empty_shards=True, contiguous=True),
}

# Made from nothing: each rank makes its shard.
_FRESH = {
    aten.scalar_tensor.default: Rule(pointwise.fresh),
    **family(
        Rule(pointwise.fresh, shape="size"),
        aten.full.default,
        aten.zeros.default,
        aten.ones.default,
        aten.empty.memory_format,
        aten.new_zeros.default,
        aten.new_ones.default,
        aten.new_full.default,
        aten.new_empty.default,
    ),
}

# Pointwise, though not tagged so, and pointwise ops that are linear.
_POINTWISE = {
    aten.clone.default: Rule(pointwise.pointwise, FIRST),
    aten.alias.default: Rule(pointwise.pointwise, FIRST),
    aten.detach.default: Rule(pointwise.pointwise, FIRST),
    aten.contiguous.default: Rule(pointwise.pointwise, FIRST),
    aten._to_copy.default: Rule(pointwise.cast),
    aten.neg.default: Rule(pointwise.pointwise, FIRST),
    aten.add.Tensor: Rule(pointwise.pointwise, ((0, 1),)),
    aten.sub.Tensor: Rule(pointwise.pointwise, ((0, 1),)),
    aten.mul.Tensor: Rule(pointwise.pointwise, BOTH),
    aten.mul.Scalar: Rule(pointwise.pointwise, FIRST),
    aten.div.Tensor: Rule(pointwise.pointwise, FIRST),
    aten.div.Scalar: Rule(pointwise.pointwise, FIRST),
    aten.where.self: Rule(pointwise.pointwise, ((1, 2),)),
    aten.masked_fill.Scalar: Rule(pointwise.masked_fill),
    **family(
        Rule(pointwise.pointwise),
        aten.masked_fill.Tensor,
        aten.lift_fresh_copy.default,
        aten.copy.default,
        aten.copy_.default,
        aten.floor_divide.default,
        aten.hardswish.default,
        aten.softshrink_backward.default,
        aten.hardshrink_backward.default,
        aten._neg_view.default,
        aten.zeros_like.default,
        aten.ones_like.default,
        aten.full_like.default,
        aten.empty_like.default,
        aten.fill.Scalar,
        aten.fill.Tensor,
        aten.complex.default,
        aten.polar.default,
        aten._conj.default,
        aten._conj_physical.default,
        aten._prelu_kernel.default,
    ),
}

# Known, and nothing of them may be split.
_UNSPLIT = family(
    Rule(whole_dims.unsplit),
    # the shape of the result depends on the numbers, or any element on any other
    aten.masked_select.default,
    aten.masked_scatter.default,
    aten.masked_scatter_backward.default,
    aten.nonzero.default,
    aten.nonzero_static.default,
    aten.bincount.default,
    aten.put.default,
    aten.repeat_interleave.Tensor,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
    # recurrent nets: every state depends on the whole of the last
    aten.mkldnn_rnn_layer.default,
    aten.mkldnn_rnn_layer_backward.default,
    aten._cudnn_rnn.default,
    # a value depends on its index, or where it lies on strides
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.linspace.default,
    aten.eye.default,
    aten.eye.m,
    aten.tril_indices.default,
    aten.triu_indices.default,
    aten.empty_strided.default,
    aten.new_empty_strided.default,
    aten.as_strided.default,
    aten.as_strided_scatter.default,
    # read by Python: numbers, and checks
    aten.sym_numel.default,
    aten.sym_stride.int,
    aten.sym_storage_offset.default,
    aten._local_scalar_dense.default,
    aten._assert_async.default,
    aten._assert_async.msg,
    aten._linalg_check_errors.default,
)

TABLE: dict[Any, Rule] = {
    **_MATRIX_PRODUCTS,
    **_MATRICES,
    **_ATTENTION,
    **_INDEXING,
    **_NORMALISATION,
    **_GRADIENTS,
    **images.IMAGES,
    **_SPECTRA,
    **_REDUCTIONS,
    **_ALONG_A_DIMENSION,
    **_VIEWS,
    **_FRESH,
    **_POINTWISE,
    **_UNSPLIT,
    aten.sym_size.int: Rule(pointwise.size),
    higher_order.flex_attention: Rule(reductions.flex_attention),
    higher_order.flex_attention_backward: Rule(backward.flex_attention_backward),
}

# Custom ops of other libraries, by name: they need not be installed.
_EXTERNAL: dict[str, Rule] = {
    "tpfx.rnn_layer.default": Rule(whole_dims.unsplit),
    "transformers.grouped_mm_fallback.default": Rule(reductions.grouped_mm),
    "transformers.grouped_mm_fallback_backward.default": Rule(
        "t! k, e! k n, e!, t! n -> t! k, e! k n", each=True
    ),
    "aten._grouped_mm.default": Rule(reductions.grouped_mm, lower=Lowering.GROUPED_MM),
    **quantized.KERNELS,
}
_TAGGED = Rule(pointwise.pointwise)


def rule_for(target: Any) -> Rule | None:
    """The row that describes an op, or None where there is none and it must run whole."""
    rule = TABLE.get(target) or _EXTERNAL.get(str(target))
    if rule is None and isinstance(target, OpOverload) and torch.Tag.pointwise in target.tags:
        return _TAGGED if not target._schema.is_mutable else None
    return rule
