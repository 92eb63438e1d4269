"""Rules of the operations on single entries, and of those that nothing is known of."""

from torch import Tensor

from baselines.channels.dependency.tracer import Call, Rule, Tracer


def named(rule: Rule, names: str) -> dict[str, Rule]:
    """The rule under each of some names, with spaces between them."""
    return dict.fromkeys(names.split(), rule)


def unknown(tracer: Tracer, call: Call) -> None:
    """Fixes all channels that reach it: what is not known is kept."""
    for tensor in call.tensors:
        tracer.fix(tensor, f"{tracer.here} runs {call.name} on it")


def _made(tracer: Tracer, call: Call) -> None:
    """A tensor made of numbers alone; an empty one is to be filled."""
    if "empty" in call.name:
        tracer.mark_empty(call.result, call.result)


def same(tracer: Tracer, call: Call) -> None:
    """The same entries in another memory, or a tensor like its input."""
    tracer.give(call.result, tracer.fields(call.tensors[0]))
    tracer.same_as(call.result, call.tensors[0])


def entry_by_entry(tracer: Tracer, call: Call) -> None:
    """Ties what meets entry by entry."""
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


RULES: dict[str, Rule] = {
    **named(same, "clone _to_copy detach alias contiguous lift_fresh zeros_like ones_like "
            "empty_like rand_like randn_like full_like bernoulli"),
    **named(_made, "empty zeros ones full arange scalar_tensor new_zeros new_ones new_full "
            "new_empty eye linspace empty_strided is_same_size _local_scalar_dense rand randn"),
    **named(entry_by_entry, "celu dropout native_dropout fill floor_divide hardswish "
            "log_sigmoid_forward masked_fill rsub where xlogy zero _prelu_kernel gelu "
            "rrelu_with_noise lerp addcmul addcdiv softplus hardtanh"),
    "set": unknown,
}  # fmt: skip
