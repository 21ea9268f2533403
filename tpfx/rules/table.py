"""The table of ops: one row each, in the notation of `rules`.

Pointwise ops need no row: they are recognised by their tag. Rows whose meaning depends on arguments name a
function
of `shapes`. `rule_for` answers None for an op that nobody has described: it runs whole on every rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ..ir.nodes import arguments
from ..torch_internals.fx import OpOverload
from . import backward, convolutions, indexing, pointwise, reductions, views, whole_dims
from .rule import Rule

aten = torch.ops.aten

TABLE: dict[Any, Rule] = {
    # matrix products
    aten.linear.default: Rule(reductions.linear, lower="linear"),
    aten.mm.default: Rule("m k, k n -> m n", linear=((0,), (1,))),
    aten.bmm.default: Rule("b m k, b k n -> b m n", linear=((0,), (1,))),
    aten.mv.default: Rule("m k, k -> m", linear=((0,), (1,))),
    aten.dot.default: Rule("k, k ->", linear=((0,), (1,))),
    aten.baddbmm.default: Rule(reductions.baddbmm),
    aten.convolution.default: Rule(convolutions.convolution, lower="convolution"),
    aten.linalg_solve_triangular.default: Rule(reductions.solve, lower="never_empty"),
    aten.linalg_inv_ex.default: Rule("... m! n! -> ... m n, ...", lower="never_empty"),
    aten.linalg_cholesky_ex.default: Rule("... m! n! -> ... m n, ...", lower="never_empty"),
    # attention
    aten._scaled_dot_product_flash_attention_for_cpu.default: Rule(reductions.attention, lower="never_empty"),
    aten._scaled_dot_product_flash_attention.default: Rule(reductions.attention, lower="never_empty"),
    aten._scaled_dot_product_efficient_attention.default: Rule(reductions.attention, lower="never_empty"),
    aten._scaled_dot_product_cudnn_attention.default: Rule(reductions.attention, lower="never_empty"),
    # lookups
    aten.embedding.default: Rule("v d, ... -> ... d", linear=((0,),), lower="embedding"),
    aten.index_select.default: Rule(indexing.index_select, linear=((0,),)),
    aten.gather.default: Rule(indexing.gather, linear=((0,),), lower="gather"),
    aten.index.Tensor: Rule(indexing.index, linear=((0,),)),
    aten.index_put.default: Rule(indexing.index_put),
    aten.index_copy.default: Rule(indexing.index_copy),
    aten.index_add.default: Rule(indexing.index_add),
    aten.index_fill.int_Scalar: Rule(indexing.index_fill),
    aten.slice_scatter.default: Rule(indexing.slice_scatter),
    aten.select_scatter.default: Rule(indexing.slice_scatter),
    aten.scatter.src: Rule(indexing.scatter_to_parts, lower="scatter"),
    aten.scatter.value: Rule(indexing.scatter_to_parts, lower="scatter"),
    aten.scatter.reduce: Rule(indexing.scatter),
    aten.scatter.value_reduce: Rule(indexing.scatter),
    aten.scatter_add.default: Rule(indexing.scatter_to_parts, lower="scatter"),
    aten.scatter_reduce.two: Rule(indexing.scatter),
    aten.isin.Tensor_Tensor: Rule(indexing.isin),
    aten.bucketize.Tensor: Rule("..., s! -> ..."),
    aten.searchsorted.Tensor: Rule(indexing.searchsorted),
    aten.masked_select.default: Rule(whole_dims.unsplit),
    aten.masked_scatter.default: Rule(whole_dims.unsplit),
    aten.nonzero.default: Rule(whole_dims.unsplit),
    aten.bincount.default: Rule(whole_dims.unsplit),
    aten.take.default: Rule(whole_dims.unsplit),
    aten.put.default: Rule(whole_dims.unsplit),
    aten.repeat_interleave.Tensor: Rule(whole_dims.unsplit),
    aten._unique2.default: Rule(whole_dims.unsplit),
    aten.unique_consecutive.default: Rule(whole_dims.unsplit),
    aten.unique_dim.default: Rule(whole_dims.unsplit),
    # normalisation
    aten.native_layer_norm.default: Rule(reductions.norm),
    aten._fused_rms_norm.default: Rule(reductions.norm),
    aten._softmax.default: Rule(reductions.along),
    aten._safe_softmax.default: Rule(reductions.along),
    aten._log_softmax.default: Rule(reductions.along),
    aten.native_group_norm.default: Rule(reductions.group_norm, lower="group_norm"),
    aten._native_batch_norm_legit_no_training.default: Rule(reductions.batch_norm, lower="never_empty"),
    aten._native_batch_norm_legit_functional.default: Rule(reductions.batch_norm, lower="never_empty"),
    # gradients
    aten.convolution_backward.default: Rule(convolutions.convolution_backward, lower="convolution"),
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: Rule(
        backward.attention_backward, lower="dense"
    ),
    aten._scaled_dot_product_flash_attention_backward.default: Rule(
        backward.attention_backward, lower="dense"
    ),
    aten._scaled_dot_product_efficient_attention_backward.default: Rule(
        backward.attention_backward, lower="dense"
    ),
    aten._scaled_dot_product_cudnn_attention_backward.default: Rule(
        backward.attention_backward, lower="dense"
    ),
    aten.native_layer_norm_backward.default: Rule(backward.norm_backward, lower="dense"),
    aten._fused_rms_norm_backward.default: Rule(backward.norm_backward, lower="dense"),
    aten._softmax_backward_data.default: Rule(backward.softmax_backward),
    aten.slice_backward.default: Rule(backward.slice_backward, lower="slice_backward"),
    aten.embedding_dense_backward.default: Rule(backward.embedding_backward, lower="embedding_backward"),
    aten.silu_backward.default: Rule(pointwise.pointwise, linear=((0,),)),
    aten._cdist_backward.default: Rule(whole_dims.unsplit),
    aten.avg_pool2d_backward.default: Rule("... y! x!, ... h! w! -> ... h! w!", lower="never_empty"),
    aten._adaptive_avg_pool2d_backward.default: Rule(
        "... y! x!, ... h! w! -> ... h! w!", lower="never_empty"
    ),
    aten.max_pool2d_with_indices_backward.default: Rule(
        "... y! x!, ... h! w!, ... y! x! -> ... h! w!", lower="never_empty"
    ),
    aten.grid_sampler_2d_backward.default: Rule(whole_dims.unsplit),
    aten.masked_scatter_backward.default: Rule(whole_dims.unsplit),
    # images and signals
    aten.avg_pool2d.default: Rule("... h! w! -> ... y! x!", lower="never_empty"),
    aten.avg_pool3d.default: Rule("... d! h! w! -> ... z! y! x!", lower="never_empty"),
    aten._adaptive_avg_pool2d.default: Rule("... h! w! -> ... y! x!", lower="never_empty"),
    aten._adaptive_avg_pool3d.default: Rule("... d! h! w! -> ... z! y! x!", lower="never_empty"),
    aten.adaptive_max_pool2d.default: Rule("... h! w! -> ... y! x!, ... y! x!", lower="never_empty"),
    aten.max_pool2d_with_indices.default: Rule("... h! w! -> ... y! x!, ... y! x!", lower="never_empty"),
    aten.max_pool3d_with_indices.default: Rule(
        "... d! h! w! -> ... z! y! x!, ... z! y! x!", lower="never_empty"
    ),
    aten.upsample_nearest1d.default: Rule("n c w! -> n c x!", lower="never_empty"),
    aten.upsample_linear1d.default: Rule("n c w! -> n c x!", lower="never_empty"),
    aten.upsample_nearest2d.default: Rule("n c h! w! -> n c y! x!", lower="never_empty"),
    aten._upsample_nearest_exact2d.default: Rule("n c h! w! -> n c y! x!", lower="never_empty"),
    aten.upsample_bilinear2d.default: Rule("n c h! w! -> n c y! x!", lower="never_empty"),
    aten._upsample_bilinear2d_aa.default: Rule("n c h! w! -> n c y! x!", lower="never_empty"),
    aten.upsample_bicubic2d.default: Rule("n c h! w! -> n c y! x!", lower="never_empty"),
    aten._upsample_bicubic2d_aa.default: Rule("n c h! w! -> n c y! x!", lower="never_empty"),
    aten.grid_sampler_2d.default: Rule("n c h! w!, n y! x! p! -> n c y x", lower="never_empty"),
    aten.pixel_shuffle.default: Rule(views.shuffle, linear=((0,),), lower="never_empty"),
    aten.im2col.default: Rule("n c! h! w! -> n k! l!", lower="never_empty"),
    aten.col2im.default: Rule("n k! l! -> n c! y! x!", lower="never_empty"),
    aten.reflection_pad1d.default: Rule("... w! -> ... x!", lower="never_empty"),
    aten.reflection_pad2d.default: Rule("... h! w! -> ... y! x!", lower="never_empty"),
    aten.replication_pad1d.default: Rule("... w! -> ... x!", lower="never_empty"),
    aten.replication_pad2d.default: Rule("... h! w! -> ... y! x!", lower="never_empty"),
    aten._fft_c2c.default: Rule(reductions.along, lower="never_empty"),
    aten._fft_r2c.default: Rule(reductions.along, lower="never_empty"),
    aten._fft_c2r.default: Rule(reductions.along, lower="never_empty"),
    aten._cdist_forward.default: Rule("... m k!, ... n k! -> ... m n"),
    # recurrent nets: every state depends on the whole of the last
    aten.mkldnn_rnn_layer.default: Rule(whole_dims.unsplit),
    aten._cudnn_rnn.default: Rule(whole_dims.unsplit),
    # reductions
    aten.sum.dim_IntList: Rule(reductions.reduction),
    aten.sum.default: Rule(reductions.reduction),
    aten.mean.dim: Rule(reductions.reduction, lower="mean"),
    aten.mean.default: Rule(reductions.reduction, lower="mean"),
    aten.amax.default: Rule(reductions.reduction, lower="extreme"),
    aten.amin.default: Rule(reductions.reduction, lower="extreme"),
    aten.any.dim: Rule(reductions.along_gone),
    aten.any.dims: Rule(reductions.along_gone),
    aten.all.dim: Rule(reductions.along_gone),
    aten.all.dims: Rule(reductions.along_gone),
    aten.max.dim: Rule(reductions.along_gone),
    aten.min.dim: Rule(reductions.along_gone),
    aten.max.default: Rule(reductions.along_gone),
    aten.min.default: Rule(reductions.along_gone),
    aten.argmin.default: Rule(reductions.along_gone),
    aten.median.dim: Rule(reductions.along_gone),
    aten.kthvalue.default: Rule(reductions.along_gone),
    aten.logsumexp.default: Rule(reductions.along_gone),
    aten.prod.default: Rule(reductions.along_gone),
    aten.std.correction: Rule(reductions.along_gone),
    aten.norm.ScalarOpt_dim: Rule(reductions.along_gone),
    aten.count_nonzero.dim_IntList: Rule(reductions.along_gone),
    aten.any.default: Rule(reductions.along_gone),
    aten.all.default: Rule(reductions.along_gone),
    aten.argmax.default: Rule(reductions.along_gone),
    aten.prod.dim_int: Rule(reductions.along_gone),
    aten.var_mean.correction: Rule(reductions.along_gone),
    aten.var.correction: Rule(reductions.along_gone),
    aten.linalg_vector_norm.default: Rule(reductions.along_gone),
    # along one dimension
    aten.cumsum.default: Rule(reductions.cumsum),
    aten.cumprod.default: Rule(reductions.along),
    aten.cummax.default: Rule(reductions.along),
    aten.cummin.default: Rule(reductions.along),
    aten.logcumsumexp.default: Rule(reductions.along),
    aten.glu.default: Rule(reductions.along),
    aten.triu.default: Rule("... r! c! -> ... r c", linear=((0,),)),
    aten.tril.default: Rule("... r! c! -> ... r c", linear=((0,),)),
    aten.sort.default: Rule(reductions.along),
    aten.sort.stable: Rule(reductions.along),
    aten.topk.default: Rule(reductions.along),
    aten.flip.default: Rule(reductions.along, linear=((0,),)),
    aten.roll.default: Rule(reductions.along, linear=((0,),)),
    aten.constant_pad_nd.default: Rule(views.pad),
    aten.histc.default: Rule(reductions.along_gone),
    # views
    aten.view.default: Rule(views.view, linear=((0,),), shape="size"),
    aten._unsafe_view.default: Rule(views.view, linear=((0,),), shape="size"),
    aten.reshape.default: Rule(views.view, linear=((0,),), shape="shape"),
    aten.t.default: Rule(views.permute, linear=((0,),)),
    aten.transpose.int: Rule(views.permute, linear=((0,),)),
    aten.permute.default: Rule(views.permute, linear=((0,),)),
    aten.unsqueeze.default: Rule(views.unsqueeze, linear=((0,),)),
    aten.squeeze.dim: Rule(views.squeeze, linear=((0,),), lower="squeeze"),
    aten.squeeze.dims: Rule(views.squeeze, linear=((0,),), lower="squeeze"),
    aten.squeeze.default: Rule(views.squeeze, linear=((0,),), lower="squeeze"),
    aten.expand.default: Rule(views.expand, linear=((0,),), shape="size"),
    aten.repeat.default: Rule(views.repeat, linear=((0,),)),
    aten.cat.default: Rule(views.cat),
    aten.stack.default: Rule(views.stack),
    aten.slice.Tensor: Rule(views.slice_, linear=((0,),), lower="slice"),
    aten.select.int: Rule(views.select, linear=((0,),), lower="select"),
    aten.split.Tensor: Rule(views.split, linear=((0,),), lower="split"),
    aten.split_with_sizes.default: Rule(views.split, linear=((0,),), lower="split"),
    aten.unbind.int: Rule(views.unbind, linear=((0,),)),
    aten.diagonal.default: Rule(views.diagonal, linear=((0,),)),
    aten.diag_embed.default: Rule(views.diag_embed, linear=((0,),)),
    aten.unfold.default: Rule(views.windows, linear=((0,),)),
    aten.as_strided.default: Rule(whole_dims.unsplit),
    aten.view_as_real.default: Rule("... -> ... p!"),
    aten.view_as_complex.default: Rule("... p! -> ...", lower="dense"),
    # made from nothing
    aten.full.default: Rule(pointwise.fresh, shape="size"),
    aten.zeros.default: Rule(pointwise.fresh, shape="size"),
    aten.ones.default: Rule(pointwise.fresh, shape="size"),
    aten.empty.memory_format: Rule(pointwise.fresh, shape="size"),
    aten.new_zeros.default: Rule(pointwise.fresh, shape="size"),
    aten.new_ones.default: Rule(pointwise.fresh, shape="size"),
    aten.new_full.default: Rule(pointwise.fresh, shape="size"),
    aten.new_empty.default: Rule(pointwise.fresh, shape="size"),
    aten.scalar_tensor.default: Rule(pointwise.fresh),
    aten.arange.default: Rule(whole_dims.unsplit),
    aten.arange.start: Rule(whole_dims.unsplit),
    aten.arange.start_step: Rule(whole_dims.unsplit),
    aten.linspace.default: Rule(whole_dims.unsplit),
    aten.eye.default: Rule(whole_dims.unsplit),
    aten.eye.m: Rule(whole_dims.unsplit),
    aten.tril_indices.default: Rule(whole_dims.unsplit),
    aten.triu_indices.default: Rule(whole_dims.unsplit),
    aten.empty_strided.default: Rule(whole_dims.unsplit),
    aten.new_empty_strided.default: Rule(whole_dims.unsplit),
    # read by Python: numbers, and checks
    aten.sym_size.int: Rule(pointwise.size),
    aten.sym_stride.int: Rule(whole_dims.unsplit),
    aten.sym_storage_offset.default: Rule(whole_dims.unsplit),
    aten._local_scalar_dense.default: Rule(whole_dims.unsplit),
    aten._assert_async.default: Rule(whole_dims.unsplit),
    aten._assert_async.msg: Rule(whole_dims.unsplit),
    # pointwise, though not tagged so, and pointwise ops that are linear
    aten.clone.default: Rule(pointwise.pointwise, linear=((0,),)),
    aten.alias.default: Rule(pointwise.pointwise, linear=((0,),)),
    aten.detach.default: Rule(pointwise.pointwise, linear=((0,),)),
    aten.contiguous.default: Rule(pointwise.pointwise, linear=((0,),)),
    aten.lift_fresh_copy.default: Rule(pointwise.pointwise),
    aten._to_copy.default: Rule(pointwise.cast),
    aten.copy.default: Rule(pointwise.pointwise),
    aten.copy_.default: Rule(pointwise.pointwise),
    aten.floor_divide.default: Rule(pointwise.pointwise),
    aten.zeros_like.default: Rule(pointwise.pointwise),
    aten.ones_like.default: Rule(pointwise.pointwise),
    aten.full_like.default: Rule(pointwise.pointwise),
    aten.empty_like.default: Rule(pointwise.pointwise),
    aten.fill.Scalar: Rule(pointwise.pointwise),
    aten.fill.Tensor: Rule(pointwise.pointwise),
    aten.complex.default: Rule(pointwise.pointwise),
    aten.polar.default: Rule(pointwise.pointwise),
    aten._conj.default: Rule(pointwise.pointwise),
    aten._conj_physical.default: Rule(pointwise.pointwise),
    aten._prelu_kernel.default: Rule(pointwise.pointwise),
    aten.masked_fill.Scalar: Rule(pointwise.masked_fill),
    aten.masked_fill.Tensor: Rule(pointwise.pointwise),
    aten.where.self: Rule(pointwise.pointwise, linear=((1, 2),)),
    aten.add.Tensor: Rule(pointwise.pointwise, linear=((0, 1),)),
    aten.sub.Tensor: Rule(pointwise.pointwise, linear=((0, 1),)),
    aten.neg.default: Rule(pointwise.pointwise, linear=((0,),)),
    aten.mul.Tensor: Rule(pointwise.pointwise, linear=((0,), (1,))),
    aten.mul.Scalar: Rule(pointwise.pointwise, linear=((0,),)),
    aten.div.Tensor: Rule(pointwise.pointwise, linear=((0,),)),
    aten.div.Scalar: Rule(pointwise.pointwise, linear=((0,),)),
}

_POINTWISE = Rule(pointwise.pointwise)


def rule_for(target: Any) -> Rule | None:
    """The row that describes an op, or None where there is none and it must run whole."""
    rule = TABLE.get(target) or _EXTERNAL.get(str(target))
    if rule is None and isinstance(target, OpOverload) and torch.Tag.pointwise in target.tags:
        return _POINTWISE if not target._schema.is_mutable else None
    return rule


def is_random(node: Node) -> bool:
    """Whether a call draws random numbers: attention does so only where it drops something."""
    if not isinstance(node.target, OpOverload) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    return bool(arguments(node).get("dropout_p", 1.0) != 0.0)


# Custom ops of other libraries, by name: they need not be installed.
_EXTERNAL: dict[str, Rule] = {
    "transformers.grouped_mm_fallback.default": Rule(reductions.grouped_mm),
    "transformers.grouped_mm_fallback_backward.default": Rule(
        "t! k, e! k n, e!, t! n -> t! k, e! k n", each=True
    ),
    "aten._grouped_mm.default": Rule(reductions.grouped_mm, lower="grouped_mm"),
}
