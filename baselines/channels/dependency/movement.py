"""Rules of the operations that move data: what is done to the entries is done to the labels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from baselines.channels.dependency.channel_labels import CONSTANT, Field
from baselines.channels.dependency.entries import entry_by_entry, named, same, unknown
from baselines.channels.dependency.tracer import Call, Rule, Tracer

VIEWS = ("view", "_unsafe_view", "view_copy", "reshape", "_reshape_alias")


def moved(tracer: Tracer, call: Call) -> None:
    """Does to the labels what is done to the entries."""
    x = call.tensors[0]
    results = call.result if isinstance(call.result, tuple | list) else [call.result]
    found: list[list[Field]] = [[] for _ in results]
    for labels in tracer.fields(x):
        args = [labels.expand(x.shape) if arg is x else arg for arg in call.args]
        if call.name in VIEWS:
            made = args[0].reshape(call.result.shape)
        else:
            made = call.function(*args, **call.kwargs)
        parts = made if isinstance(made, tuple | list) else [made]
        for part, fields in zip(parts, found, strict=True):
            fields.append(part)
    for result, fields in zip(results, found, strict=True):
        tracer.give(result, fields)
        if result.numel() == x.numel():
            tracer.same_as(result, x)
        if call.name in VIEWS:
            tracer.count_dimensions(result)


def _sliced(tracer: Tracer, call: Call) -> None:
    """A slice or selection along one dimension, which must not be one of channels."""
    x, dim = call.tensors[0], call.dim()
    if call.result.ndim < x.ndim or call.result.shape != x.shape:
        tracer.fix(x, f"{tracer.here} takes a fixed part of it", [dim])
    whole = tracer.made_empty(x)
    if whole is not None:
        tracer.mark_empty(call.result, whole)
    moved(tracer, call)


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
    moved(tracer, call)


def _shuffled(tracer: Tracer, call: Call) -> None:
    """`channel_shuffle`: the groups lose the same places."""
    x, groups = call.tensors[0], call.given["groups"]
    for labels in tracer.fields(x):
        if labels.shape[1] > 1:
            parts = labels.unflatten(1, (groups, -1))
            tracer.labels.tie(parts, parts.narrow(1, 0, 1))
    moved(tracer, call)


def _copied(tracer: Tracer, call: Call) -> None:
    """`copy_`: into a new tensor, or part of one, it is what is copied; else a meeting of both."""
    target, source = call.tensors
    whole = tracer.made_empty(target)
    if whole is None or target.ndim != source.ndim:
        entry_by_entry(tracer, call)
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
        unknown(tracer, call)
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


def _restrided(tracer: Tracer, call: Call) -> None:
    """`as_strided`: known only where it changes nothing but the layout."""
    if call.result.shape == call.tensors[0].shape:
        same(tracer, call)
    else:
        unknown(tracer, call)


RULES: dict[str, Rule] = {
    **named(moved, "_unsafe_view _reshape_alias permute transpose t unsqueeze squeeze expand "
            "repeat repeat_interleave pixel_shuffle pixel_unshuffle view reshape view_copy unfold "
            "diagonal"),
    **named(_sliced, "slice select narrow"),
    **named(_in_pieces, "split split_with_sizes unbind chunk unsafe_split "
            "unsafe_split_with_sizes"),
    **named(_shuffled, "channel_shuffle native_channel_shuffle"),
    **named(_rolled, "roll flip"),
    "as_strided": _restrided,
    "copy": _copied,
    "glu": _gated,
    "cat": _joined,
    "stack": _stacked,
    "constant_pad_nd": _padded,
    "index": _indexed,
    "embedding": _looked_up,
}  # fmt: skip
