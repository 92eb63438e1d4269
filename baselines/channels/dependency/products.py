"""Rules of the operations that multiply: convs, matrix products, attention.

In each a weight or an activation meets another: their channels are tied where they are multiplied,
summed away where the result has them no more, and passed on where it has.
"""

from math import prod

from torch import Tensor

from baselines.channels.dependency.channel_labels import Field
from baselines.channels.dependency.tracer import Call, Rule, Tracer


def _sizes(*operands: tuple[Tensor, str]) -> dict[str, int]:
    """The size of each letter's dimension."""
    sizes: dict[str, int] = {}
    for tensor, spelled in operands:
        for letter, size in zip(spelled, tensor.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return sizes


def _matrix_product(tracer: Tracer, a: Tensor, b: Tensor, spelled: str) -> list[Field]:
    """Fields of a product that is spelled like `nk,km->nm`."""
    operands, out = spelled.split("->")
    of_a, of_b = operands.split(",")
    fields = tracer.product(
        [(tracer.fields(a), of_a), (tracer.fields(b), of_b)], _sizes((a, of_a), (b, of_b)), out
    )
    for weight, of_weight, other, of_other in ((a, of_a, b, of_b), (b, of_b, a, of_a)):
        if tracer.is_static(weight) and not tracer.is_static(other):
            for dim, letter in enumerate(of_weight):
                if letter not in of_other:
                    tracer.write(weight, dim)
                elif letter not in out:
                    tracer.read(other, of_other.index(letter), weight, dim)
    return fields


def _mm(tracer: Tracer, call: Call) -> None:
    a, b = call.args
    spelled = {
        "mm": "nk,km->nm", "bmm": "bnk,bkm->bnm", "mv": "nk,k->n", "dot": "k,k->", "vdot": "k,k->",
    }[call.name]  # fmt: skip
    tracer.give(call.result, _matrix_product(tracer, a, b, spelled))


def _added_mm(tracer: Tracer, call: Call) -> None:
    """`addmm` and its like: a bias and a product."""
    bias, a, b = call.args
    spelled = {"addmm": "nk,km->nm", "baddbmm": "bnk,bkm->bnm", "addmv": "nk,k->n"}[call.name]
    fields = _matrix_product(tracer, a, b, spelled)
    shape = call.result.shape
    missing = len(shape) - bias.ndim
    of_bias = [each[(None,) * missing] for each in tracer.fields(bias)]
    both = [(of_bias, [1] * missing + list(bias.shape)), (fields, shape)]
    tracer.give(call.result, tracer.combine(both))


def _conv(tracer: Tracer, call: Call) -> None:
    given = call.given
    x, weight, bias, groups = given["input"], given["weight"], given["bias"], given["groups"]
    transposed = given["transposed"]
    spatial = weight.ndim - 2
    if x.ndim == spatial + 1:
        tracer.fix(x, f"{tracer.here} runs it without a batch")
        return
    reason = f"{tracer.here} takes several positions of it together"
    tracer.fix(x, reason, range(2, x.ndim))
    tracer.fix(weight, reason, range(2, weight.ndim))
    inputs, outputs = x.shape[1] // groups, call.result.shape[1] // groups
    # Whole groups go, or else the same places of every group: whichever leaves the finer steps.
    passes = groups > 1 and (1 in (inputs, outputs) or groups >= min(inputs, outputs))
    if passes and transposed:
        tracer.fix(weight, f"{tracer.here} has groups of {outputs} outputs", [1])
    # The weight's first dimension holds the groups: those of the outputs, or of the inputs.
    first, letters = (inputs, "gio") if transposed else (outputs, "goi")
    of_x = [_split(each, 1, (groups, inputs), spatial) for each in tracer.fields(x)]
    of_weight = [_split(each, 0, (groups, first), spatial) for each in tracer.fields(weight)]
    for labels, group in ((of_x, 1), (of_weight, 0)):
        for each in labels:
            if each.shape[group] > 1 and each.shape[group + 1] > 1:
                tracer.labels.tie(each, each.narrow(group + 1 if passes else group, 0, 1))
    positions = x.shape[2:] if transposed else call.result.shape[2:]
    fields = tracer.product(
        [(of_x, "ngi"), (of_weight, letters)],
        {"n": x.shape[0], "g": groups, "i": inputs, "o": outputs},
        "ngo",
        prod(weight.shape[2:]) * prod(positions),
    )
    if passes:
        fields = [each for each in fields if each.shape[1] > 1]
    made = [_joined(each, groups, outputs, spatial) for each in fields]
    if bias is not None:
        shape = [1, bias.shape[0], *[1] * spatial]
        of_bias = [each.reshape(shape) for each in tracer.fields(bias)]
        made = tracer.combine([(made, call.result.shape), (of_bias, shape)])
    tracer.give(call.result, made)
    if passes:
        for each in of_weight:
            if each.shape[0] > 1:
                tracer.counts("groups", each)
    if tracer.is_static(weight):
        tracer.write(weight, 1 if transposed and not passes else 0, passes)
        if not passes:
            tracer.read(x, 1, weight, 0 if transposed else 1)


def _split(labels: Field, dim: int, parts: tuple[int, int], spatial: int) -> Field:
    """Without spatial dimensions, which are 1 long, and with `dim` split in two."""
    labels = labels.flatten(labels.ndim - spatial)[..., 0] if spatial else labels
    return labels.unflatten(dim, parts if labels.shape[dim] > 1 else (1, 1))


def _joined(labels: Field, groups: int, outputs: int, spatial: int) -> Field:
    """From (n, group, output) to (n, channel, 1, ...)."""
    if labels.shape[1] > 1 or labels.shape[2] > 1:
        labels = labels.expand(-1, groups, outputs)
    labels = labels.flatten(1, 2)
    return labels.reshape(*labels.shape, *[1] * spatial)


def _attention(tracer: Tracer, call: Call) -> None:
    """Fused attention of q, k and v, (n, heads, length, dimensions)."""
    q, k, v = (call.given[name] for name in ("query", "key", "value"))
    mask = call.given.get("attn_mask")
    if isinstance(mask, Tensor):
        tracer.fix(mask, f"{tracer.here} adds it to attention")
    sizes = _sizes((q, "nhld"), (k, "nhsd"), (v, "nhse"))
    of_q, of_k, of_v = (tracer.fields(each) for each in (q, k, v))
    scores = tracer.product([(of_q, "nhld"), (of_k, "nhsd")], _without(sizes, "e"), "nhls")
    made = tracer.product([(scores, "nhls"), (of_v, "nhse")], _without(sizes, "d"), "nhle")
    tracer.give(call.result[0] if isinstance(call.result, tuple) else call.result, made)


def _without(sizes: dict[str, int], letter: str) -> dict[str, int]:
    return {each: size for each, size in sizes.items() if each != letter}


RULES: dict[str, Rule] = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot"), _mm),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), _added_mm),
    "convolution": _conv,
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
        ),
        _attention,
    ),
}
