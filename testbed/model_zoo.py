"""Networks of timm and torchvision by name, and the weights that they are published with.

`timm:resnet18` (an optional package) is built with `num_classes` and `in_chans` of the data,
`torchvision:resnet50` with `num_classes`. Further options are the library's own keywords.
"""

import importlib
import inspect
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from testbed.names import unknown

Library = Literal["timm", "torchvision"]
LIBRARIES: tuple[Library, ...] = ("timm", "torchvision")
PRETRAINED = "pretrained"  # the weights that a library takes itself
FROM_DATA = {"num_classes", "in_chans", "pretrained", "n_classes", "input_shape"}
# Heads that are of use only in training would make what the network gives no plain logits.
DEFAULTS: dict[str, dict[str, Any]] = {
    "torchvision:googlenet": {"aux_logits": False, "init_weights": False},
    "torchvision:inception_v3": {"aux_logits": False, "init_weights": False},
}
SECONDS = 10.0  # that a server may take to answer

Options = Mapping[str, Any]
InputShape = tuple[int, int, int]  # channels, height, width


def library_of(name: str) -> Library | None:
    """The library that a name is of, if it is one of a library's."""
    prefix, colon, _ = name.partition(":")
    return next((library for library in LIBRARIES if colon and prefix == library), None)


def version_of(name: str) -> str:
    """The version of the library that a name is of."""
    return str(_library(name).__version__)


def check(name: str, options: Options) -> None:
    """
    Raises:
        ValueError: if the library is not installed, has no such network or takes no such option.
    """
    library, own = _library(name), _own(name)
    if library_of(name) == "torchvision":
        names = library.models.list_models(module=library.models)
        function = library.models.get_model_builder(own) if own in names else None
    else:
        names = library.list_models()
        plain = own.partition(".")[0]
        function = library.model_entrypoint(plain) if plain in names else None
        if function is not None:
            _check_tag(name)
    if function is None:
        raise ValueError(unknown(f"network of {library_of(name)}", own, names))
    for option in options:
        if option in FROM_DATA:
            raise ValueError(f"{name}: {option!r} follows from the data. Leave it out.")
    parameters = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for option in options:
            if option not in parameters:
                raise ValueError(unknown(f"option of {name}", option, parameters))


def build(name: str, input_shape: InputShape, n_classes: int, options: Options) -> nn.Module:
    """The network with weights as its library draws them.

    Raises:
        ValueError: if it takes colour images only, and these are not.
    """
    return _built(name, input_shape, {"num_classes": n_classes, **options})


def check_weights(name: str, weights: str) -> None:
    """
    Raises:
        ValueError: if there are no weights of that name to be downloaded.
    """
    library = library_of(name)
    if library is None:
        raise ValueError(
            f"weights: {weights!r} is no file, and only networks of timm and torchvision have "
            "weights to download. Give a file: .safetensors, .pt or .pth."
        )
    known = [PRETRAINED]
    if library == "torchvision":
        known += [each.name for each in _library(name).models.get_model_weights(_own(name))]
    if weights not in known:
        raise ValueError(unknown(f"weights of {name}", weights, known) + " Or give a file.")


def pretrained(
    name: str, weights: str, input_shape: InputShape, options: Options
) -> dict[str, Tensor]:
    """The weights that a network is published with, downloaded unless they were before.

    Raises:
        ValueError: if there are none, or they cannot be downloaded: what to download, and where to.
    """
    if library_of(name) == "timm":
        return _of_timm(name, input_shape, options)
    known = _library(name).models.get_model_weights(_own(name))
    chosen = known.DEFAULT if weights == PRETRAINED else known[weights]
    place = Path(torch.hub.get_dir()) / "checkpoints" / chosen.url.rpartition("/")[2]
    if not place.exists():
        _check_reachable(name, chosen.url, f"put it at {str(place)!r}")
    plain = {key: value for key, value in options.items() if key != "init_weights"}
    return dict(_built(name, input_shape, {"weights": chosen, **plain}).state_dict())


def _of_timm(name: str, input_shape: InputShape, options: Options) -> dict[str, Tensor]:
    timm = _library(name)
    published = timm.models.get_pretrained_cfg(_own(name))
    if published is None or not (published.hf_hub_id or published.url):
        raise ValueError(f"timm has no weights of {_own(name)}. Give a file as weights.")
    if published.hf_hub_id:
        from huggingface_hub import constants, try_to_load_from_cache  # timm needs it, we do not

        file = "model.safetensors"
        url = f"{constants.ENDPOINT}/{published.hf_hub_id}/resolve/main/{file}"
        if not isinstance(try_to_load_from_cache(published.hf_hub_id, file), str):
            _check_reachable(name, url, "name the file as weights")
    return dict(_built(name, input_shape, {"pretrained": True, **options}).state_dict())


def _check_reachable(name: str, url: str, where: str) -> None:
    """
    Raises:
        ValueError: if nothing answers at the address.
    """
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=SECONDS):
            pass
    except urllib.error.HTTPError:
        return  # something answers, and the library knows what to make of that
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ValueError(
            f"The weights of {name} cannot be downloaded from here ({reason}): download {url} "
            f"where there is a network, and {where}."
        ) from error


def _built(name: str, input_shape: InputShape, keywords: dict[str, Any]) -> nn.Module:
    library, own, channels = _library(name), _own(name), input_shape[0]
    keywords = {**DEFAULTS.get(name, {}), **keywords}
    if "weights" in keywords:
        keywords.pop("init_weights", None)
    if library_of(name) == "timm":
        network: nn.Module = library.create_model(own, in_chans=channels, **keywords)
        return network
    if channels != 3:
        raise ValueError(
            f"torchvision's networks take images of 3 channels, these have {channels}. Take one of "
            "timm, which takes any number, or colour images."
        )
    network = library.models.get_model(own, **keywords)
    return network


def _own(name: str) -> str:
    """The library's own name of a network."""
    return name.partition(":")[2]


def _library(name: str) -> ModuleType:
    library = library_of(name)
    assert library is not None, f"{name} is not of a library"
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{name} needs {library}, which is not installed. Install it with: pip install "
            f"{library}"
        ) from error


def _check_tag(name: str) -> None:
    """
    Raises:
        ValueError: if timm has no weights of the tag in `timm:resnet18.TAG`.
    """
    own, timm = _own(name), _library(name)
    plain, dot, tag = own.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_models(f"{plain}.*", pretrained=True)]
    if dot and tag not in tags:
        raise ValueError(unknown(f"weights of timm:{plain}", tag, tags))
