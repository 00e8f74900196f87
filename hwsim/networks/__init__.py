"""Networks by name: each loads real data that is at hand and trains, deterministically, in seconds."""

import importlib
import inspect
from pathlib import Path
from typing import Any

from models.unit import nearest, require

NETWORKS = {
    "digits-mlp": ("hwsim.networks.mlp", "digits_mlp"),
    "digits-cnn": ("hwsim.networks.cnn", "digits_cnn"),
    "minilm": ("hwsim.networks.minilm", "minilm"),
    "pylm": ("hwsim.networks.llama", "pylm"),
    "mamba": ("hwsim.networks.mamba", "mamba"),
}
"""Name -> module and function of one argument, the seed; imported when first used."""


def get_network(name: str, *, seed: int = 1, **options: Any) -> Any:
    """The trained network of that name; InputError with the nearest name otherwise.

    `text_bytes`: how much held-out text a language model is judged on. A folder's path takes the model of the Llama
    family in it.
    """
    if name not in NETWORKS and Path(name).is_dir():
        from hwsim.networks.llama import load_folder

        return load_folder(Path(name), **options)
    require(name in NETWORKS, f"no network {name!r}; {nearest(name, NETWORKS)}")
    module, function = NETWORKS[name]
    make = getattr(importlib.import_module(module), function)
    known = inspect.signature(make).parameters
    for option in options:
        require(option in known, f"network {name}: no option {option!r}; it belongs to language models")
    return make(seed=seed, **options)
