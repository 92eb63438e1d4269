"""Counter of the multiplications of the operations that a network really runs, strictly.

The formulas are those of PyTorch's `FlopCounterMode`, which gives two floating-point operations for
each multiplication: halved here. Unlike it, an operation without a formula is an error and not a
silent zero, unless it is listed below as free: elementwise work, pooling, resampling,
normalisation, reductions, and moving or making data. (So a matrix product written as a broadcast
`*` and a sum is elementwise work, and what runs outside of torch is not seen.) Give an operation of
your own a formula with `torch.utils.flop_counter.register_flop_formula`; 0 declares it free.

A convolution in the Winograd domain is counted as the direct one that it stands for: what it saves
is a cost of its own (`testbed.special_costs`), since any 3x3 conv of any network could run so.

What composes a weight of parameters alone (`torch.nn.utils.parametrizations`) is free too: it
depends on no image, and a network to be shipped holds the weight itself.
"""

from collections import ChainMap, Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from testbed.dispatch_mode import DispatchMode
from testbed.winograd import WinogradConv2d, direct_multiplications

aten = torch.ops.aten


class UncountedOperationError(RuntimeError):
    """An operation ran whose multiplications are not known."""


def _matrix_vector_flops(matrix: Tensor, *_: Any, **__: Any) -> int:
    return 2 * matrix.numel()


def _add_matrix_vector_flops(_: Tensor, matrix: Tensor, *__: Any, **___: Any) -> int:
    return 2 * matrix.numel()


# What FlopCounterMode lacks although `@` or attention on a CPU runs it.
_MORE_FORMULAS: dict[Any, Any] = {
    aten.mv: _matrix_vector_flops,
    aten.dot: _matrix_vector_flops,
    aten.vdot: _matrix_vector_flops,
    aten.addmv: _add_matrix_vector_flops,
    aten.addbmm: flop_registry[aten.baddbmm],
    aten.addmm_: flop_registry[aten.addmm],
    aten.baddbmm_: flop_registry[aten.baddbmm],
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        aten._scaled_dot_product_flash_attention
    ],
}
_FORMULAS = ChainMap(flop_registry, _MORE_FORMULAS)  # a view: finds what is registered later

# Free besides what torch itself tags as elementwise or knows to be a view. In-place forms (`copy_`)
# are named without their underscore, and what takes no tensor (`zeros`) needs no entry.
_FREE_BY_KIND = {
    "elementwise, and recurrent cells after their matrix products": """
        celu complex dropout fill floor_divide glu hardswish log_sigmoid_forward masked_fill
        native_dropout rrelu_with_noise rsub where xlogy zero _prelu_kernel _thnn_fused_gru_cell
        _thnn_fused_lstm_cell""",
    "pooling and resampling": """
        adaptive_max_pool2d adaptive_max_pool3d avg_pool2d avg_pool3d fractional_max_pool2d
        max_pool2d_with_indices max_pool3d_with_indices max_unpool2d mkldnn_max_pool2d
        upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
        upsample_nearest2d upsample_nearest3d upsample_trilinear3d _adaptive_avg_pool2d
        _adaptive_avg_pool3d _upsample_bicubic2d_aa _upsample_bilinear2d_aa
        _upsample_nearest_exact2d""",
    "normalisation": """
        cudnn_batch_norm miopen_batch_norm native_batch_norm native_group_norm native_layer_norm
        renorm _batch_norm_no_update _fused_rms_norm _log_softmax _native_batch_norm_legit
        _native_batch_norm_legit_no_training _safe_softmax _softmax _weight_norm_interface""",
    "reductions, comparisons and sorting": """
        all allclose amax amin aminmax any argmax argmin bincount bucketize count_nonzero cummax
        cummin cumprod cumsum equal is_same_size isin kthvalue linalg_vector_norm logsumexp max mean
        median min mode nansum norm prod searchsorted sort std std_mean sum topk trace unique_dim
        unique_consecutive var var_mean _is_all_true _is_any_true _unique _unique2""",
    "moving data": """
        as_strided as_strided_scatter block_diag cat channel_shuffle col2im constant_pad_nd copy
        detach diag_embed diagonal_scatter embedding flip gather im2col index index_add index_copy
        index_fill index_put index_select lift lift_fresh lift_fresh_copy masked_scatter
        masked_select narrow_copy nonzero nonzero_static pixel_shuffle pixel_unshuffle put
        reflection_pad1d reflection_pad2d reflection_pad3d repeat repeat_interleave resize
        replication_pad1d replication_pad2d replication_pad3d roll rot90 scatter scatter_add
        scatter_reduce select_scatter set slice_scatter squeeze stack t take transpose tril triu
        unsafe_split unsafe_split_with_sizes unsqueeze _index_put_impl _local_scalar_dense
        _pin_memory _stack _to_copy _unsafe_index _unsafe_index_put _unsafe_view""",
    "making data in the likeness of a tensor": """
        bernoulli empty_like exponential full_like multinomial new_empty new_empty_strided new_full
        new_ones new_zeros normal ones_like rand_like randint_like randn_like random uniform
        zeros_like""",
}
_FREE = frozenset(" ".join(_FREE_BY_KIND.values()).split())


@contextmanager
def counting_multiplications(network: nn.Module) -> Iterator[Counter[str]]:
    """Counts, while the context is open, what runs inside and outside of `network`.

    Yields:
        Multiplications by the dotted name of the innermost module of `network` that was running; ""
        is the network itself. A module that stands in two places has the first one's name.

    Raises:
        UncountedOperationError: inside the context, from the operation without a formula; or for a
            TorchScript network, whose fused operations no counter sees.
    """
    counter = _Counter()
    with ExitStack() as stack:
        for name, module in network.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                raise UncountedOperationError(
                    f"Module {name!r} is TorchScript, which hides what it runs. Count the network "
                    "that it was made from."
                )
            # First in and last out, so that the work of other hooks belongs to the module too.
            enter, leave = counter.hooks(name, module)
            stack.enter_context(module.register_forward_pre_hook(enter, prepend=True))
            stack.enter_context(module.register_forward_hook(leave, always_call=True))
        stack.enter_context(_plain_attention())
        stack.enter_context(counter)
        yield counter.by_layer


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Has nn.MultiheadAttention take its products one by one: its fused kernel has no formula."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


class _Counter(DispatchMode):
    supports_higher_order_operators = True  # else torch refuses them in its own words

    def __init__(self) -> None:
        super().__init__()
        self.by_layer: Counter[str] = Counter()
        self._running = [""]
        self._in_winograd: set[str] = set()

    def hooks(self, name: str, module: nn.Module) -> tuple[Any, Any]:
        if isinstance(module, WinogradConv2d):
            self._in_winograd.add(name)

        def enter(*_: Any) -> None:
            self._running.append(name)

        def leave(module: Any, _: Any, output: Any) -> None:
            self._running.pop()
            if isinstance(module, WinogradConv2d) and output is not None:
                self.by_layer[name] += direct_multiplications(module, output)

        return enter, leave

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket if isinstance(func, OpOverload) else func
        running = self._running[-1]
        if ".parametrizations." in f".{running}" or running in self._in_winograd:
            return func(*args, **kwargs)
        if packet in _FORMULAS:
            result = func(*args, **kwargs)
            flops = _FORMULAS[packet](*args, **kwargs, out_val=result)
            self.by_layer[self._running[-1]] += flops // 2
            return result
        if isinstance(func, HigherOrderOperator):
            raise self._uncounted(func.name())
        if _is_free(func, args, kwargs):
            return func(*args, **kwargs)
        with self:  # what it is composed of comes back here
            result = func.decompose(*args, **kwargs)
        if result is NotImplemented:
            raise self._uncounted(func.name())
        return result

    def _uncounted(self, operation: str) -> UncountedOperationError:
        name = operation if "::" in operation else f"higher_order::{operation}"
        reference = name.split(".")[0].replace("::", ".")
        return UncountedOperationError(
            f"How many multiplications does the operation {operation} take? It ran in layer "
            f"{self._running[-1]!r}, and no formula is known for it. Register one before counting, "
            "which returns two for each multiplication, or 0 if it needs none:\n"
            "    @torch.utils.flop_counter.register_flop_formula"
            f"(torch.ops.{reference})\n"
            "    def flops(*input_shapes, out_shape=None, **options) -> int: ..."
        )


def _is_free(operation: OpOverload, args: Any, kwargs: Any) -> bool:
    if _is_known_free(operation):
        return True
    takes_tensors = any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs)))
    return operation.namespace == "aten" and not takes_tensors


@cache
def _is_known_free(operation: OpOverload) -> bool:
    if torch.Tag.pointwise in operation.tags or operation.is_view:
        return True
    if operation.namespace in ("prim", "profiler"):  # asks for a tensor's device; marks a trace
        return True
    if operation.namespace != "aten":
        return False
    name = operation._schema.name.removeprefix("aten::")
    out_of_place = name.removesuffix("_")
    # torch has tagged `abs` as elementwise, but not `abs_`.
    twin = getattr(getattr(aten, out_of_place, None), operation._overloadname, operation)
    return name in _FREE or out_of_place in _FREE or torch.Tag.pointwise in twin.tags
