"""The operators that a .pt2 from a stranger may call: those that compute tensors from tensors.

An operator that is not here may read or write files, start processes, load libraries, share or
reinterpret memory, or do what nobody knows (the operators of other libraries). In-place variants
(with a trailing ``_``) are those of the same name.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

_TARGET = re.compile(r"torch\.ops\.(\w+)\.(\w+)\.(\w+)", re.ASCII)

_ATEN = """
    abs absolute acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d add addbmm addcdiv addcmul addmm
    addmv addr affine_grid_generator alias alias_copy all alpha_dropout amax amin aminmax angle any
    arange arccos arcsin arctan arctan2 argmax argmin argsort argwhere asin asinh atan atan2 atanh
    atleast_1d atleast_2d atleast_3d avg_pool1d avg_pool2d avg_pool3d baddbmm bartlett_window
    batch_norm bernoulli bilinear bitwise_and bitwise_left_shift bitwise_not bitwise_or
    bitwise_right_shift bitwise_xor blackman_window block_diag bmm broadcast_tensors broadcast_to
    bucketize cartesian_prod cat cdist ceil celu channel_shuffle chunk clamp clamp_max clamp_min
    clip clone col2im column_stack complex concat concatenate conj conj_physical constant_pad_nd
    contiguous conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
    copy copysign cos cosh cosine_similarity count_nonzero cross cummax cummin cumprod cumsum
    deg2rad detach detach_copy diag diag_embed diagonal diagonal_copy diff digamma div divide dot
    dropout einsum elu embedding empty empty_like empty_permuted eq equal erf erfc erfinv exp exp2
    expand expand_as expand_copy expm1 eye fake_quantize_per_channel_affine
    fake_quantize_per_tensor_affine feature_alpha_dropout feature_dropout fft_fft fft_fft2
    fft_fftfreq fft_fftn fft_fftshift fft_hfft fft_ifft fft_ifft2 fft_ifftn fft_ifftshift fft_ihfft
    fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftfreq fft_rfftn fill fix flatten flip
    fliplr flipud float_power floor floor_divide fmax fmin fmod frac frobenius_norm full full_like
    gather gcd ge gelu ger glu greater greater_equal grid_sampler grid_sampler_2d grid_sampler_3d
    group_norm gru gru_cell gt hamming_window hann_window hardshrink hardsigmoid hardswish hardtanh
    heaviside hstack hypot i0 im2col imag index index_add index_copy index_fill index_put
    index_select inner instance_norm isclose isfinite isin isinf isnan isneginf isposinf isreal
    item kron kthvalue l1_loss layer_norm ldexp le leaky_relu lerp less less_equal lgamma lift
    lift_fresh lift_fresh_copy linalg_cross linalg_det linalg_inv linalg_matmul linalg_matrix_norm
    linalg_norm linalg_vecdot linalg_vector_norm linear linspace log log10 log1p log2 log_sigmoid
    log_softmax logaddexp logaddexp2 logcumsumexp logical_and logical_not logical_or logical_xor
    logit logspace logsumexp lstm lstm_cell lt mH mT masked_fill masked_scatter masked_select
    matmul matrix_H matrix_power max max_pool1d max_pool1d_with_indices max_pool2d
    max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d max_unpool3d maximum
    mean median meshgrid min minimum mish mm moveaxis movedim mse_loss msort mul multiply mv
    nan_to_num nanmean nansum narrow narrow_copy native_batch_norm native_channel_shuffle
    native_dropout native_group_norm native_layer_norm ne neg negative new_empty new_full new_ones
    new_zeros nonzero nonzero_static norm normal normal_functional not_equal numpy_T one_hot ones
    ones_like outer pad pairwise_distance permute permute_copy pixel_shuffle pixel_unshuffle polar
    positive pow prelu prod quantile rad2deg rand rand_like randint randint_like randn randn_like
    randperm ravel real reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu relu6
    remainder renorm repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d
    reshape reshape_as resolve_conj resolve_neg rms_norm rnn_relu rnn_relu_cell rnn_tanh
    rnn_tanh_cell roll rot90 round row_stack rrelu rsqrt rsub scalar_tensor
    scaled_dot_product_attention scatter scatter_add scatter_reduce searchsorted select select_copy
    select_scatter selu sgn sigmoid sign signbit silu sin sinc sinh size slice slice_copy
    slice_scatter slow_conv_dilated2d slow_conv_transpose2d softmax softplus softshrink sort
    special_entr special_erf special_erfc special_expit special_log_softmax special_logit
    special_ndtr special_ndtri special_round special_softmax special_xlogy split split_copy
    split_with_sizes split_with_sizes_copy sqrt square squeeze squeeze_copy stack std std_mean
    stft istft sub subtract sum sum_to_size swapaxes swapdims sym_numel sym_size sym_stride
    sym_storage_offset t t_copy take take_along_dim tan tanh tensor_split tensordot thnn_conv2d
    threshold tile to topk trace transpose transpose_copy tril tril_indices triu triu_indices
    true_divide trunc type_as unbind unbind_copy unflatten unfold unfold_copy uniform
    unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze unsqueeze_copy upsample_bicubic2d
    upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_trilinear3d var var_mean vdot view view_as view_as_complex view_as_complex_copy
    view_as_real view_as_real_copy view_copy vstack where xlogy zero zeros zeros_like
    __and__ __or__ __xor__ __lshift__ __rshift__ _adaptive_avg_pool2d _adaptive_avg_pool3d
    _addmm_activation _batch_norm_no_update _batch_norm_with_update_functional _cdist_forward _conj
    _conj_copy _convolution _embedding_bag embedding_bag
    fake_quantize_per_channel_affine_cachemask fake_quantize_per_tensor_affine_cachemask
    _fft_c2c _fft_c2r _fft_r2c
    _local_scalar_dense _log_softmax _native_batch_norm_legit _native_batch_norm_legit_functional
    _native_batch_norm_legit_no_training _prelu_kernel _reshape_copy _safe_softmax
    _scaled_dot_product_attention_math _scaled_dot_product_flash_attention_for_cpu
    _scaled_dot_product_efficient_attention _scaled_dot_product_flash_attention _softmax _stack
    _to_copy _unsafe_index _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm
    _weight_norm_interface _native_multi_head_attention _transformer_encoder_layer_fwd _trilinear
    _fused_rms_norm log_sigmoid_forward
    _assert_async _assert_scalar _assert_tensor_metadata sym_constrain_range
    sym_constrain_range_for_size _functional_assert_async _functional_assert_scalar
    _functional_sym_constrain_range _functional_sym_constrain_range_for_size
    """
ATEN = frozenset(_ATEN.split())

_ALLOCATING = """
    arange bartlett_window blackman_window empty empty_permuted eye fft_fftfreq fft_rfftfreq full
    hamming_window hann_window linspace logspace new_empty new_full new_ones new_zeros
    nonzero_static normal one_hot ones rand randint randn randperm repeat repeat_interleave
    scalar_tensor tile tril_indices triu_indices zeros
    """
ALLOCATING = frozenset(_ALLOCATING.split())
"""Operators that make tensors as large as their numbers say."""

_OTHER_LIBRARIES = {
    "torchvision": frozenset(
        {"nms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"}
    ),
    "quantized_decomposed": frozenset(
        {"quantize_per_tensor", "dequantize_per_tensor", "quantize_per_channel",
         "dequantize_per_channel"}
    ),
}  # fmt: skip

_PLAIN = frozenset(
    {"torch.ops.higher_order.wrap_with_set_grad_enabled", "torch.ops.higher_order.cond",
     "torch.ops.higher_order.wrap_with_autocast",
     *(f"_operator.{name}" for name in (
         "eq", "ne", "le", "ge", "lt", "gt", "neg", "pos", "mul", "add", "sub", "floordiv", "mod",
         "pow", "truediv", "and_", "or_", "getitem", "not_")),
     *(f"torch.sym_{name}" for name in (
         "not", "int", "float", "ite", "max", "min", "sqrt", "sum")),
     "torch._sym_sqrt", "math.trunc", "math.ceil", "math.floor"}
)  # fmt: skip

_KINDS = ("Tensor", "int", "SymInt", "float", "bool", "number", "Device", "Generator", "str",
          "complex", "NoneType")  # fmt: skip


def name_of(target: str) -> str:
    """The bare name of an operator: ``torch.ops.aten.relu_.default`` gives ``relu``."""
    match = _TARGET.fullmatch(target)
    name = match.group(2) if match else target.rpartition(".")[2]
    return name if name in ATEN or name.endswith("__") else name.removesuffix("_")


def overload_of(target: str) -> torch._ops.OpOverload | None:
    """The operator behind a name; None where it is none, or its library is not there."""
    match = _TARGET.fullmatch(target)
    place: Any = torch.ops
    for name in match.groups() if match else ():
        place = getattr(place, name, None)
    return place if isinstance(place, torch._ops.OpOverload) else None


def python_function(target: str) -> Callable[..., Any] | None:
    """The function on numbers behind a name such as ``_operator.add``; None of other names."""
    module, _, name = target.rpartition(".")
    home = {"_operator": operator, "math": math, "torch": torch}.get(module)
    return getattr(home, name, None) if home is not None and target in _PLAIN else None


def is_allowed(target: str) -> bool:
    """Whether a program may call this."""
    if target in _PLAIN:
        return True
    match = _TARGET.fullmatch(target)
    if match is None:
        return False
    library, name, overload = match.groups()
    if library in _OTHER_LIBRARIES:
        return name in _OTHER_LIBRARIES[library]
    if library != "aten" or name_of(target) not in ATEN:
        return False
    return _takes_tensors(name, overload)


@cache
def _takes_tensors(name: str, overload: str) -> bool:
    """Whether this overload is one of tensors and numbers, not of TorchScript's lists and texts."""
    call = overload_of(f"torch.ops.aten.{name}.{overload}")
    if call is None:
        return False
    schema = call._schema
    arguments = [str(a.type) for a in schema.arguments]
    types = arguments + [str(a.type) for a in schema.returns]
    bare = [re.sub(r"Optional|List|\[|\]|\d", "", text) for text in types]
    symbols = name.startswith(("sym_", "_assert_scalar", "_functional_sym", "_functional_assert"))
    return (
        all(kind in _KINDS for kind in bare)
        and ("Tensor" in bare or symbols)
        and not any("List[str]" in text for text in types)
    )
