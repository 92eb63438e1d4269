"""The methods that a sweep file can name: one line each."""

from typing import Any

from pydantic import BaseModel

from testbed.names import import_object, unknown

METHODS = {
    "dense": "baselines.dense:Dense",
    "vanilla": "baselines.channels.vanilla:Vanilla",
    "random_channels": "baselines.channels.random_channels:RandomChannels",
    "l1_filter": "baselines.channels.l1_filter:L1Filter",
    "thinet": "baselines.channels.thinet:ThiNet",
    "class_statistics": "baselines.channels.class_statistics:ClassStatistics",
    "pcas": "baselines.channels.pcas:PCAS",
    "amc": "baselines.channels.amc:AMC",
    "feature_maps": "baselines.runtime.feature_maps:FeatureMaps",
    "fbs": "baselines.runtime.fbs:FBS",
    "magnitude": "baselines.weights.magnitude:Magnitude",
    "str": "baselines.weights.str:STR",
    "autoprune": "baselines.weights.autoprune:AutoPrune",
    "bit_pruning": "baselines.weights.bit_pruning:BitPruning",
    "joint_sparsity": "baselines.weights.joint_sparsity:JointSparsity",
    "policy_gradient": "baselines.channels.policy_gradient:PolicyGradient",
    "cascade": "baselines.runtime.cascade:Cascade",
    "cascade_random": "baselines.runtime.cascade_random:CascadeRandom",
    "second_look": "baselines.runtime.second_look:SecondLook",
    "static_prefix": "rnp.static_prefix:StaticPrefix",
    "rnp": "rnp.runtime_neural_pruning:RNP",
    "rnp_groups": "rnp.rnp_groups:RNPGroups",
    "static_blocks": "rnp.static_blocks:StaticBlocks",
    "network_routing": "rnp.network_routing:NetworkRouting",
}


def method_class(name: str) -> Any:
    """The class of a method's options, imported when it is asked for.

    Args:
        name: a key of `METHODS`, or `package.module:Class` for a method of your own.

    Raises:
        ValueError: if the name is not known, or is not that of a pydantic model with `prune`.
    """
    if ":" not in name and name not in METHODS:
        raise ValueError(unknown("method", name, METHODS) + " Or package.module:Class.")
    found = import_object(METHODS.get(name, name))
    is_model = isinstance(found, type) and issubclass(found, BaseModel)
    if not is_model or not hasattr(found, "prune"):
        raise ValueError(
            f"Expected a pydantic model with a method `prune` at {name}, got {found!r}."
        )
    return found
