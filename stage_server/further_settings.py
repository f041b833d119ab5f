"""Settings of a stage server that concern stages beside the model's own: which models they have."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from pydantic_settings import BaseSettings

from wire.params import MAX_ENHANCED_TOKENS
from wire.types import OPTIONAL, Role

DEFAULT_TOKENS = 256


class FurtherSettings(BaseSettings):
    """Mixed into those of a server. A stage's setting has the name of its role."""

    upscaler: str = Field(
        "",
        description="folder or hub id, HUB_ID[@REVISION], of a Swin2SR model that makes finished pictures larger: "
        "the stage upscaler, which --role may name and the gateway may give this server",
    )
    enhancer: str = Field(
        "",
        description="folder or hub id, HUB_ID[@REVISION], of a causal language model that writes prompts anew: "
        "the stage enhancer, which --role may name and the gateway may give this server",
    )
    enhancer_instruction: str = Field(
        "", max_length=8000, description="what the enhancer is told to do with prompts, in place of the usual words"
    )
    enhancer_tokens: int = Field(
        DEFAULT_TOKENS, ge=1, le=MAX_ENHANCED_TOKENS, description="that the enhancer writes at most"
    )

    def check_further(self, engine: str, roles: tuple[Role, ...]) -> None:
        """Raises ``ValueError``."""
        for role in OPTIONAL:
            source: str = getattr(self, role.value)
            if engine == "emulated" and source:
                raise ValueError(
                    f"--{role} belongs to --engine diffusers: an emulation has one where its profile has a section "
                    f"[{role}]"
                )
            if engine == "diffusers" and role in roles and not source:
                raise ValueError(f"--role {role} needs to know which: add --{role} FOLDER_OR_HUB_ID")
        if not self.enhancer and (self.enhancer_instruction or self.enhancer_tokens != DEFAULT_TOKENS):
            raise ValueError(
                "--enhancer-instruction and --enhancer-tokens are about an enhancer, and none is named: add --enhancer "
                "FOLDER_OR_HUB_ID"
            )


OF_NONE: dict[str, Any] = {name: field.default for name, field in FurtherSettings.model_fields.items()}
"""As of a server without such stages."""
