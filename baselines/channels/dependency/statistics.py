"""Rules of the operations over several entries: reductions, norms, pooling.

Where one looks at several channels together, it is noted: without some channels it looks at those
that are left.
"""

import re

from baselines.channels.dependency.entries import named
from baselines.channels.dependency.tracer import Call, Rule, Tracer

STATISTICS = ("mean", "sum", "amax", "amin", "var", "var_mean", "linalg_vector_norm", "norm")


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


def over_positions(tracer: Tracer, call: Call) -> None:
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


RULES: dict[str, Rule] = {
    **named(_reduced, "mean sum amax amin max min var std var_mean std_mean linalg_vector_norm "
            "norm logsumexp prod any all argmax argmin median"),
    **named(_softmax, "_softmax _log_softmax _safe_softmax cumsum"),
    **named(_batch_norm, "native_batch_norm cudnn_batch_norm miopen_batch_norm "
            "_native_batch_norm_legit _native_batch_norm_legit_no_training "
            "_batch_norm_no_update"),
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "_weight_norm_interface": _weight_norm,
}  # fmt: skip
