"""Networks by name: each loads real data that is at hand and trains, deterministically, in seconds."""

import importlib
from typing import Any

from models.unit import nearest, require

NETWORKS = {"digits-mlp": ("hwsim.networks.mlp", "digits_mlp")}
"""Name -> module and function of one argument, the seed; imported when first used."""


def get_network(name: str, *, seed: int = 1) -> Any:
    """The trained network of that name; InputError with the nearest name otherwise."""
    require(name in NETWORKS, f"no network {name!r}; {nearest(name, NETWORKS)}")
    module, function = NETWORKS[name]
    return getattr(importlib.import_module(module), function)(seed=seed)
