"""What stands where a component is absent from a role but read by its blocks.

Without it geometry changes silently: a pipeline without a VAE assumes a scale factor of 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict


class ComponentStub:
    """Configuration and dtype of a component, no weights. Deliberately not an ``nn.Module``: it has no device.

    Configuration entries are attributes too, as on the components (``vae.temperal_downsample``).
    """

    def __init__(self, name: str, config: Mapping[str, Any], dtype: torch.dtype) -> None:
        self.name = name
        self.config = FrozenDict(config)
        self.dtype = dtype

    def __getattr__(self, attribute: str) -> Any:
        config = self.__dict__.get("config", {})
        if attribute in config:
            return config[attribute]
        raise AttributeError(
            f"{self.__dict__.get('name')} is not loaded in this role, and its configuration has no {attribute!r}"
        )
