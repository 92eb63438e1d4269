"""Rules of the operations that do not multiply: entry by entry, moving data, statistics, pooling.

What only moves data is done to the labels as well. What is not listed here or in `products` fixes
the channels that reach it.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from baselines.channels.dependency import products
from baselines.channels.dependency.channel_labels import CONSTANT, Field
from baselines.channels.dependency.tracer import Call, Rule, Tracer


@cache
def rule_for(function: Any, name: str) -> Rule | None:
    """The rule of an operation; None where its parts are to be followed.

    Args:
        function: an overload of `torch.ops`.
        name: without namespace, overload and in-place mark.
    """
    if name in products.RULES:
        return products.RULES[name]
    if name in RULES:
        return RULES[name]
    if torch.Tag.pointwise in function.tags:
        return _entry_by_entry
    if function.is_view:
        return _moved
    if re.search(r"(pool|upsample|pad|grid_sampler).*[123]d", name):
        return _over_positions
    if _is_composed(function):
        return None
    return _unknown


def _is_composed(function: Any) -> bool:
    key = "CompositeImplicitAutograd"
    found: bool = torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), key)
    return found


def _unknown(tracer: Tracer, call: Call) -> None:
    for tensor in call.tensors:
        tracer.fix(tensor, f"{tracer.here} runs {call.name} on it")


def _made(tracer: Tracer, call: Call) -> None:
    """A tensor made of numbers alone; an empty one is to be filled."""
    if "empty" in call.name:
        tracer.mark_empty(call.result, call.result)


def _same(tracer: Tracer, call: Call) -> None:
    """The same entries in another memory, or a tensor like its input."""
    tracer.give(call.result, tracer.fields(call.tensors[0]))
    tracer.same_as(call.result, call.tensors[0])


def _entry_by_entry(tracer: Tracer, call: Call) -> None:
    result: Tensor = call.result[0] if isinstance(call.result, tuple) else call.result
    operands = [
        (
            [each[(None,) * (result.ndim - each.ndim)] for each in tracer.fields(tensor)],
            [1] * (result.ndim - tensor.ndim) + list(tensor.shape),
        )
        for tensor in call.tensors
    ]
    fields = tracer.combine(operands)
    added = [t for t in call.tensors if tracer.fields(t) and not tracer.is_static(t)]
    if call.name in ("add", "sub") and len(added) > 1:
        tracer.trace.summed += [each.flatten().numpy() for each in fields]
    tracer.give(result, fields)


def _moved(tracer: Tracer, call: Call) -> None:
    """Does to the labels what is done to the entries."""
    x = call.tensors[0]
    results = call.result if isinstance(call.result, tuple | list) else [call.result]
    found: list[list[Field]] = [[] for _ in results]
    for labels in tracer.fields(x):
        args = [labels.expand(x.shape) if arg is x else arg for arg in call.args]
        if call.name in VIEWS:
            moved = args[0].reshape(call.result.shape)
        else:
            moved = call.function(*args, **call.kwargs)
        parts = moved if isinstance(moved, tuple | list) else [moved]
        for part, fields in zip(parts, found, strict=True):
            fields.append(part)
    for result, fields in zip(results, found, strict=True):
        tracer.give(result, fields)
        if result.numel() == x.numel():
            tracer.same_as(result, x)
        if call.name in VIEWS:
            tracer.count_dimensions(result)


def _restrided(tracer: Tracer, call: Call) -> None:
    """`as_strided`: known only where it changes nothing but the layout."""
    if call.result.shape == call.tensors[0].shape:
        _same(tracer, call)
    else:
        _unknown(tracer, call)


def _sliced(tracer: Tracer, call: Call) -> None:
    """A slice or selection along one dimension, which must not be one of channels."""
    x, dim = call.tensors[0], call.dim()
    if call.result.ndim < x.ndim or call.result.shape != x.shape:
        tracer.fix(x, f"{tracer.here} takes a fixed part of it", [dim])
    whole = tracer.made_empty(x)
    if whole is not None:
        tracer.mark_empty(call.result, whole)
    _moved(tracer, call)


def _shuffled(tracer: Tracer, call: Call) -> None:
    """`channel_shuffle`: the groups lose the same places."""
    x, groups = call.tensors[0], call.given["groups"]
    for labels in tracer.fields(x):
        if labels.shape[1] > 1:
            parts = labels.unflatten(1, (groups, -1))
            tracer.labels.tie(parts, parts.narrow(1, 0, 1))
    _moved(tracer, call)


def _copied(tracer: Tracer, call: Call) -> None:
    """`copy_`: into a new tensor, or part of one, it is what is copied; else a meeting of both."""
    target, source = call.tensors
    whole = tracer.made_empty(target)
    if whole is None or target.ndim != source.ndim:
        _entry_by_entry(tracer, call)
        return
    fields = list(tracer.fields(source))
    same = [d for d in range(whole.ndim) if whole.shape[d] == source.shape[d]]
    for labels in fields:
        if any(labels.shape[d] > 1 and d not in same for d in range(whole.ndim)):
            tracer.labels.fix(labels, f"{tracer.here} copies it into a larger tensor")
    kept = [f for f in fields if all(f.shape[d] == 1 or d in same for d in range(whole.ndim))]
    sizes = [source.shape[d] if d in same else 1 for d in range(whole.ndim)]
    before = tracer.fields(whole)
    tracer.give(whole, tracer.combine([(kept, sizes), (before, sizes)]) if before else kept)


def _rolled(tracer: Tracer, call: Call) -> None:
    """`roll` and `flip`, along dimensions that must not be ones of channels."""
    x = call.tensors[0]
    tracer.fix(x, f"{tracer.here} runs {call.name} on it", call.given["dims"] or range(x.ndim))
    tracer.give(call.result, tracer.fields(x))


def _in_pieces(tracer: Tracer, call: Call) -> None:
    """Equal pieces of channels, which lose the same places; others lose none."""
    x, dim = call.tensors[0], call.dim()
    pieces = call.result
    for labels in tracer.fields(x):
        if labels.shape[dim] > 1:
            sizes = [1 if piece.ndim < x.ndim else piece.shape[dim] for piece in pieces]
            if len(set(sizes)) == 1:
                parts = labels.split(sizes[0], dim)
                for part in parts[1:]:
                    tracer.labels.tie(parts[0], part)
            else:
                tracer.labels.fix(labels, f"{tracer.here} takes pieces of different sizes of it")
    _moved(tracer, call)


def _gated(tracer: Tracer, call: Call) -> None:
    """`glu`: the first half of the channels times a gate made of the second."""
    x, dim = call.tensors[0], call.dim()
    half = x.shape[dim] // 2
    found = []
    for labels in tracer.fields(x):
        if labels.shape[dim] > 1:
            first, second = labels.split(half, dim)
            tracer.labels.tie(first, second)
            labels = first
        found.append(labels)
    tracer.give(call.result, found)


def _joined(tracer: Tracer, call: Call) -> None:
    """`cat`: channels one after the other, or the same channels from several tensors."""
    tensors: Sequence[Tensor] = [t for t in call.args[0] if t.ndim == call.result.ndim]
    dim = (call.args[1] if len(call.args) > 1 else call.given["dim"]) % call.result.ndim
    beside, along = [], []
    for tensor in tensors:
        fields = tracer.fields(tensor)
        shape = [1 if d == dim else size for d, size in enumerate(tensor.shape)]
        beside.append(([each for each in fields if each.shape[dim] == 1], shape))
        along.append([each for each in fields if each.shape[dim] > 1])
    found = tracer.combine(beside)
    if any(along):
        blocks = []
        for tensor, fields in zip(tensors, along, strict=True):
            constant = torch.full([1] * tensor.ndim, CONSTANT)
            shape = [tensor.shape[d] if d == dim else 1 for d in range(tensor.ndim)]
            one = [each for each in fields if each.numel() == each.shape[dim]]
            for each in fields[1:] if one else fields:
                tracer.labels.fix(each, f"{tracer.here} joins it along several dimensions")
            blocks.append(one[0] if one else constant.expand(shape))
        found.append(torch.cat(blocks, dim))
    tracer.give(call.result, found)


def _stacked(tracer: Tracer, call: Call) -> None:
    dim = (call.args[1] if len(call.args) > 1 else call.given["dim"]) % call.result.ndim
    operands = [
        ([each.unsqueeze(dim) for each in tracer.fields(t)], t.unsqueeze(dim).shape)
        for t in call.args[0]
    ]
    tracer.give(call.result, tracer.combine(operands))


def _padded(tracer: Tracer, call: Call) -> None:
    """`constant_pad_nd`: what is added along channels is no parameter's and has a fixed number."""
    x, pad = call.tensors[0], call.given["pad"]
    found = []
    for labels in tracer.fields(x):
        for place, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
            dim = labels.ndim - 1 - place
            if labels.shape[dim] > 1:
                parts = [tracer.padding(labels, dim, width) for width in (before, after)]
                labels = torch.cat([parts[0], labels, parts[1]], dim)
        found.append(labels)
    tracer.give(call.result, found)


def _indexed(tracer: Tracer, call: Call) -> None:
    """`index` and its like, along dimensions that must not be ones of channels."""
    x = call.tensors[0]
    places = call.given["indices"]
    dims = [dim for dim, index in enumerate(places) if index is not None]
    tracer.fix(x, f"{tracer.here} takes fixed entries of it", dims)
    blind = [None if i is None else torch.zeros(i.shape, dtype=torch.int64) for i in places]
    if any(i is not None and i.dtype == torch.bool for i in places):
        _unknown(tracer, call)
        return
    fields = [each for each in tracer.fields(x) if all(each.shape[dim] == 1 for dim in dims)]
    tracer.give(call.result, [call.function(each.expand(x.shape), blind) for each in fields])


def _looked_up(tracer: Tracer, call: Call) -> None:
    """`embedding`: rows of a table, whose columns are channels."""
    table = call.given["weight"]
    tracer.fix(table, f"{tracer.here} looks up rows of it", [0])
    labels = tracer.axis(table, 1)
    if labels is not None:
        shape = [1] * (call.result.ndim - 1) + [len(labels)]
        tracer.give(call.result, [torch.from_numpy(labels.copy()).reshape(shape)])
        tracer.write(table, 1)


def _reduced(tracer: Tracer, call: Call) -> None:
    """A sum, mean or another statistic along some dimensions."""
    tracer.count(call)
    x = call.tensors[0]
    given = call.given.get("dim")
    dims = list(range(x.ndim)) if given in (None, []) else given
    dims = [dim % x.ndim for dim in ([dims] if isinstance(dims, int) else dims)]
    found = []
    for labels in tracer.fields(x):
        across = [dim for dim in dims if labels.shape[dim] > 1]
        if not across:
            kept = call.given.get("keepdim", False)
            left = [0 if d in dims and not kept else slice(None) for d in range(x.ndim)]
            found.append(labels[tuple(left)])
        elif labels.numel() == labels.shape[across[0]] and call.name in STATISTICS:
            tracer.take_statistic(call, across[0], labels.flatten().numpy())
        else:
            tracer.labels.fix(labels, f"{tracer.here} runs {call.name} across it")
    tracer.give(call.result[0] if isinstance(call.result, tuple) else call.result, found)
    if isinstance(call.result, tuple) and call.name.endswith("_mean"):
        tracer.give(call.result[1], found)


def _softmax(tracer: Tracer, call: Call) -> None:
    tracer.count(call)
    x, dim = call.tensors[0], call.dim()
    for labels in tracer.fields(x):
        if labels.shape[dim] > 1:
            tracer.labels.fix(labels, f"{tracer.here} runs {call.name} across it")
    tracer.give(call.result, tracer.fields(x))


def _over_positions(tracer: Tracer, call: Call) -> None:
    """Pooling, resampling and padding of the last dimensions, the same for every channel."""
    x = call.tensors[0]
    match = re.search(r"([123])d", call.name)
    assert match is not None
    dims = range(x.ndim - int(match.group(1)), x.ndim)
    tracer.fix(x, f"{tracer.here} runs {call.name} across it", dims)
    result = call.result[0] if isinstance(call.result, tuple) else call.result
    kept = [each for each in tracer.fields(x) if all(each.shape[dim] == 1 for dim in dims)]
    tracer.give(result, kept)


def _batch_norm(tracer: Tracer, call: Call) -> None:
    x, *vectors = [t for t in call.tensors if t.numel()]
    tracer.fix(x, f"{tracer.here} normalises across it", [0, *range(2, x.ndim)])
    shape = [1, x.shape[1], *[1] * (x.ndim - 2)]
    operands = [([each.reshape(shape) for each in tracer.fields(v)], shape) for v in vectors]
    made = tracer.combine([(tracer.fields(x), x.shape), *operands])
    for labels in made:
        if labels.shape[1] > 1 and tracer.has("num_features"):
            tracer.counts("num_features", labels)
    tracer.give(call.result[0], made)


def _layer_norm(tracer: Tracer, call: Call) -> None:
    tracer.count(call)
    x = call.given["input"]
    within = range(x.ndim - len(call.given["normalized_shape"]), x.ndim)
    operands = [(tracer.fields(x), x.shape)]
    for name in ("weight", "bias"):
        vector = call.given[name]
        if vector is not None:
            before = (None,) * (x.ndim - vector.ndim)
            shape = [1] * len(before) + list(vector.shape)
            operands.append(([each[before] for each in tracer.fields(vector)], shape))
    made = tracer.combine(operands)
    for labels in made:
        for dim in within:
            if labels.shape[dim] > 1:
                tracer.counts("normalized_shape", labels)
                tracer.take_statistic(call, dim, labels.flatten().numpy())
    tracer.give(call.result[0], made)


def _group_norm(tracer: Tracer, call: Call) -> None:
    """Whole groups of channels go, or the same places of every group (see a grouped conv)."""
    tracer.count(call)
    x, groups = call.given["input"], call.given["group"]
    each = x.shape[1] // groups
    whole = groups >= each
    tracer.fix(x, f"{tracer.here} normalises across it", range(2, x.ndim))
    shape = [1, x.shape[1], *[1] * (x.ndim - 2)]
    operands = [(tracer.fields(x), x.shape)]
    for name in ("weight", "bias"):
        vector = call.given[name]
        if vector is not None:
            operands.append(([labels.reshape(shape) for labels in tracer.fields(vector)], shape))
    made = tracer.combine(operands)
    for labels in made:
        if labels.shape[1] > 1 and groups > 1 and each > 1:
            parts = labels.unflatten(1, (groups, each))
            tracer.labels.tie(parts, parts.narrow(2 if whole else 1, 0, 1))
        if labels.shape[1] > 1:
            tracer.counts("num_channels", labels)
            if whole:
                tracer.counts("num_groups", labels)
            else:
                tracer.take_statistic(call, 1, labels.flatten().numpy())
    tracer.give(call.result[0], made)


def _weight_norm(tracer: Tracer, call: Call) -> None:
    direction, size, dim = call.given["v"], call.given["g"], call.dim()
    shape = [s if d == dim else 1 for d, s in enumerate(direction.shape)]
    both = [(tracer.fields(direction), direction.shape), (tracer.fields(size), shape)]
    tracer.give(call.result[0], tracer.combine(both))


def _named(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


VIEWS = ("view", "_unsafe_view", "view_copy", "reshape", "_reshape_alias")
STATISTICS = ("mean", "sum", "amax", "amin", "var", "var_mean", "linalg_vector_norm", "norm")

RULES: dict[str, Rule] = {
    **_named(_same, "clone _to_copy detach alias contiguous lift_fresh zeros_like ones_like "
             "empty_like rand_like randn_like full_like bernoulli"),
    **_named(_made, "empty zeros ones full arange scalar_tensor new_zeros new_ones new_full "
             "new_empty eye linspace empty_strided is_same_size _local_scalar_dense "
             "rand randn"),
    **_named(_entry_by_entry, "celu dropout native_dropout fill floor_divide hardswish "
             "log_sigmoid_forward masked_fill rsub where xlogy zero _prelu_kernel gelu "
             "rrelu_with_noise lerp addcmul addcdiv softplus hardtanh"),
    **_named(_moved, "_unsafe_view _reshape_alias permute transpose t unsqueeze squeeze expand "
             "repeat repeat_interleave pixel_shuffle pixel_unshuffle channel_shuffle "
             "native_channel_shuffle view reshape view_copy unfold diagonal"),
    **_named(_sliced, "slice select narrow"),
    **_named(_in_pieces, "split split_with_sizes unbind chunk unsafe_split "
             "unsafe_split_with_sizes"),
    "as_strided": _restrided,
    "set": _unknown,
    **_named(_rolled, "roll flip"),
    **_named(_reduced, "mean sum amax amin max min var std var_mean std_mean linalg_vector_norm "
             "norm logsumexp prod any all argmax argmin median"),
    **_named(_softmax, "_softmax _log_softmax _safe_softmax cumsum"),
    **_named(_batch_norm, "native_batch_norm cudnn_batch_norm miopen_batch_norm "
             "_native_batch_norm_legit _native_batch_norm_legit_no_training "
             "_batch_norm_no_update"),
    **_named(_shuffled, "channel_shuffle native_channel_shuffle"),
    "copy": _copied,
    "glu": _gated,
    "cat": _joined,
    "stack": _stacked,
    "constant_pad_nd": _padded,
    "index": _indexed,
    "embedding": _looked_up,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "_weight_norm_interface": _weight_norm,
}  # fmt: skip
