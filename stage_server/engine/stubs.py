"""What stands where a component is absent from a role but read by its blocks.

Without it geometry changes silently: a pipeline without a VAE assumes a scale factor of 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict

_NOWHERE = frozenset({"device", "hf_device_map"})
"""Of what has no weights. A meta device in their place would be taken for one to compute on."""


class ComponentStub:
    """Configuration and dtype of a component, no weights. Deliberately not an ``nn.Module``: it has no device.

    Configuration entries are attributes too, as on the components (``vae.temperal_downsample``). For whatever else
    blocks ask, an instance on torch's meta device answers: it has every attribute that the constructor computes, and
    no memory. A block that computes with it fails, as torch mixes no devices.
    """

    def __init__(self, name: str, kind: type, config: Mapping[str, Any], dtype: torch.dtype) -> None:
        """``kind``: the component's class."""
        self.name = name
        self.config = FrozenDict(config)
        self.dtype = dtype
        self._kind = kind

    @cached_property
    def _instance(self) -> Any:
        return meta_instance(self._kind, self.config)

    @property
    def without_weights(self) -> Any:
        """A component of its class, without memory."""
        return self._instance

    def __getattr__(self, attribute: str) -> Any:
        config = self.__dict__.get("config", {})
        if config.get(attribute) is not None:
            return config[attribute]
        is_private = attribute.startswith("__") or "_kind" not in self.__dict__  # of a copy on its way, say
        if not is_private and attribute not in _NOWHERE and hasattr(self._instance, attribute):
            return getattr(self._instance, attribute)  # computed, where the configuration leaves it open
        if attribute in config:
            return None
        raise AttributeError(
            f"{self.__dict__.get('name')} is not loaded in this role, and its configuration has no {attribute!r}"
        )


def meta_instance(kind: Any, config: Mapping[str, Any]) -> Any | None:
    """A component without memory; None where the class cannot be built from its configuration alone."""
    try:
        with torch.device("meta"):
            return _build(kind, config)
    except Exception:  # constructors raise what they like; what was asked for is then not known, which is said
        return None


def _build(kind: Any, config: Mapping[str, Any]) -> Any:
    if issubclass(kind, ConfigMixin):
        return kind.from_config(config)
    return kind._from_config(kind.config_class.from_dict(dict(config)))  # of transformers
