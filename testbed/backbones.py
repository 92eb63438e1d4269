"""The networks that are pruned: plain `nn.Module`s for images of any size, built by name.

Every network takes normalised float images (n, C, H, W) and gives logits (n, n_classes). A name is
one of ours (see `own_backbones`), `timm:NAME` or `torchvision:NAME` (see `model_zoo`), or
`package.module:function`, a function of the user's that is called as
`function(input_shape=..., n_classes=..., **options)`.

`weights` is an option of all of them: a file, or the name of weights that a library downloads. It
goes to the user's function where that has a parameter of this name.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from torch import nn

from testbed import model_zoo, own_backbones
from testbed.names import import_object, nearest, unknown
from testbed.own_backbones import (
    ConvOptions,
    InputShape,
    Lfw3NetOptions,
    MCifarNetOptions,
    WidthOptions,
)
from testbed.weights import check_file, is_file, put_into, read_weights

Options = Mapping[str, Any]


class Backbone(NamedTuple):
    options: type[BaseModel]
    build: Callable[[Any, InputShape, int], nn.Module]  # Any: an instance of `options`


BACKBONES = {
    "conv": Backbone(ConvOptions, own_backbones.conv),
    "lfw3_net": Backbone(Lfw3NetOptions, own_backbones.lfw3_net),
    "m_cifarnet": Backbone(MCifarNetOptions, own_backbones.m_cifarnet),
    "vgg16": Backbone(WidthOptions, own_backbones.vgg16),
    "resnet18": Backbone(WidthOptions, own_backbones.resnet18),
    "resnet20": Backbone(WidthOptions, partial(own_backbones.thin_resnet, blocks=3)),
    "resnet56": Backbone(WidthOptions, partial(own_backbones.thin_resnet, blocks=9)),
}


def build_backbone(name: str, input_shape: InputShape, n_classes: int, **options: Any) -> nn.Module:
    """A network with the weights that its options name, freshly drawn if they name none.

    Args:
        name: one of `BACKBONES`, `timm:NAME`, `torchvision:NAME` or `package.module:function`.
        input_shape: (channels, height, width) of one image.
        options: `weights`, and fields of the backbone's options model or keywords of the function.

    Raises:
        ValueError: for a name, option or value that is not known, images that are too small, a
            user's function that does not give an `nn.Module`, or weights that do not fit.
    """
    network = draw_backbone(name, input_shape, n_classes, options)
    load_pretrained(network, name, input_shape, n_classes, options)
    return network


def draw_backbone(
    name: str, input_shape: InputShape, n_classes: int, options: Options
) -> nn.Module:
    """As `build_backbone`, before the weights that the options name are loaded: freshly drawn."""
    if len(input_shape) != 3 or min(input_shape) < 1 or n_classes < 1:
        raise ValueError(
            "Expected input_shape (channels, height, width) and a number of classes, all positive; "
            f"got {tuple(input_shape)} and {n_classes}."
        )
    check_backbone(name, options)
    _, rest = _apart(name, options)
    if ":" not in name:
        return BACKBONES[name].build(_checked(name, rest), input_shape, n_classes)
    try:
        if model_zoo.library_of(name):
            return model_zoo.build(name, input_shape, n_classes, rest)
        network = import_object(name)(input_shape=input_shape, n_classes=n_classes, **rest)
    except Exception as error:  # whatever the function raises is the user's to mend
        raise ValueError(f"Backbone {name} raised {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"Expected a torch.nn.Module from {name}, got {type(network).__name__}.")
    return network


def load_pretrained(
    network: nn.Module,
    name: str,
    input_shape: InputShape,
    n_classes: int,
    options: Options,
    new_head: bool = False,
) -> None:
    """Puts the weights that a backbone's options name into its network; does nothing without.

    Args:
        network: what `draw_backbone` gave for these arguments.
        new_head: whether weights of another number of classes may be taken, all but the last
            layer's, which stays as it was drawn. A warning in the log says so.

    Raises:
        ValueError: if the file is missing, cannot be read or does not fit, or cannot be downloaded.
    """
    weights, rest = _apart(name, options)
    if weights is None:
        return
    if is_file(weights):
        tensors, source = read_weights(Path(weights)), weights
    else:
        tensors = model_zoo.pretrained(name, weights, input_shape, rest)
        source = f"weights {weights!r} of {name}"
    put_into(network, tensors, source, n_classes, new_head)


def check_backbone(name: str, options: Options) -> None:
    """Raises the errors of `build_backbone` that depend neither on the images nor on any file."""
    weights, rest = _apart(name, options)
    if weights is not None and not (isinstance(weights, str) and weights):
        raise ValueError(f"weights: expected the name of a file, or of weights, got {weights!r}.")
    if ":" not in name:
        _checked(name, rest)
    elif model_zoo.library_of(name):
        model_zoo.check(name, rest)
    else:
        _check_function(name, rest)
    if weights is not None and not is_file(weights):
        model_zoo.check_weights(name, weights)


def check_weights_file(name: str, options: Options) -> None:
    """
    Raises:
        ValueError: if the options name a file of weights that is not there.
    """
    weights, _ = _apart(name, options)
    if weights is not None and is_file(weights):
        check_file(Path(weights))


def with_defaults(name: str, options: Options) -> dict[str, Any]:
    """The options of a backbone with its defaults filled in, of `BACKBONES`; others as they are.

    Raises:
        ValueError: as `check_backbone`.
    """
    check_backbone(name, options)
    if name not in BACKBONES:
        return dict(options)
    _, rest = _apart(name, options)
    filled = BACKBONES[name].options.model_validate(rest).model_dump(mode="json")
    return {**options, **filled}


def _apart(name: str, options: Options) -> tuple[Any, dict[str, Any]]:
    """The weights that are loaded here, if any, and what goes to the network's own function."""
    rest = dict(options)
    of_user = ":" in name and not model_zoo.library_of(name)
    if of_user and "weights" in rest and "weights" in _parameters(name):
        return None, rest
    return rest.pop("weights", None), rest


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    function = import_object(name)
    if not callable(function):
        raise ValueError(f"Expected a function at {name}, got {type(function).__name__}.")
    return inspect.signature(function).parameters


def _check_function(name: str, options: Options) -> None:
    parameters = _parameters(name)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = [parameter for parameter in parameters if parameter not in ("input_shape", "n_classes")]
    for option in options:
        if option not in known and not takes_any:
            raise ValueError(unknown(f"option of {name}", option, _with_weights(known, option)))
    try:
        signature = inspect.signature(import_object(name))
        signature.bind(input_shape=(1, 1, 1), n_classes=1, **options)
    except TypeError as error:
        raise ValueError(
            f"{name} is called as function(input_shape=..., n_classes=..., **options): {error}."
        ) from error


def _checked(name: str, options: Options) -> BaseModel:
    if name not in BACKBONES:
        raise ValueError(
            unknown("backbone", name, BACKBONES)
            + " Or timm:NAME, torchvision:NAME or package.module:function."
        )
    model = BACKBONES[name].options
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        problems = (_problem(name, model, details) for details in error.errors())
        raise ValueError("; ".join(problems)) from error


def _problem(name: str, model: type[BaseModel], details: ErrorDetails) -> str:
    option = ".".join(map(str, details["loc"]))
    if details["type"] == "extra_forbidden":
        known = _with_weights(model.model_fields, option)
        return unknown(f"option of backbone {name}", option, known)
    message = details["msg"].removeprefix("Value error, ")
    if not option:
        return f"backbone {name}: {message}"
    return f"backbone {name}: {option}: {message}, got {details['input']!r}"


def _with_weights(known: Iterable[str], option: str) -> list[str]:
    """The options of a network, and that of all networks where it may be meant."""
    return [*known, *(["weights"] if nearest(option, ["weights"]) else [])]
