"""Which models are served, under their own names and under aliases."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter

from gateway.accounts.caller import Caller
from gateway.api.abilities import abilities
from gateway.api.errors import model_not_allowed, model_not_found, overloaded
from gateway.api.keys import CallerDep
from gateway.api.state import Api, ApiDep
from wire.params import ModelInfo

router = APIRouter(prefix="/v1", tags=["models"])

WAIT_FOR_SERVERS_SECONDS = 5.0
"""``Retry-After`` while no stage server has registered yet."""


@router.get("/models")
async def list_models(api: ApiDep, caller: CallerDep) -> dict[str, object]:
    """Every served model and every alias of one that the caller may use."""
    known = {name: model for name, model in _catalogue(api).items() if caller.may_use(name, model.name)}
    return {"object": "list", "data": [_describe(name, model, api) for name, model in known.items()]}


@router.get("/models/{model:path}")
async def retrieve_model(model: str, api: ApiDep, caller: CallerDep) -> dict[str, object]:
    """One model; its id may hold slashes, plain or percent-encoded."""
    return _describe(model, _find(_catalogue(api), model, caller), api)


def resolve(api: Api, name: str | None, caller: Caller) -> ModelInfo:
    """The model that ``caller`` means by ``name``; None means the default. Raises ``ApiError`` 404, 403, or 503 before
    any stage server has registered: a model that nobody knows yet may be about to appear."""
    catalogue = _catalogue(api)
    if not catalogue:
        raise overloaded("No stage server has registered yet.", WAIT_FOR_SERVERS_SECONDS)
    return _find(catalogue, name if name is not None else _default(api), caller)


def is_known(api: Api, name: str | None) -> bool:
    """Whether some server has introduced that model since the gateway began; None is the default. Its servers may be
    away at the moment."""
    catalogue = _catalogue(api)
    return bool(catalogue) if name is None else name in catalogue


def names(api: Api, caller: Caller) -> list[str]:
    """Models and aliases that ``caller`` may use."""
    return [name for name, model in _catalogue(api).items() if caller.may_use(name, model.name)]


def _find(catalogue: Mapping[str, ModelInfo], name: str, caller: Caller) -> ModelInfo:
    """Raises ``ApiError`` 404 or 403."""
    if name not in catalogue:
        raise model_not_found(name)
    if not caller.may_use(name, catalogue[name].name):
        raise model_not_allowed(name, caller.models)
    return catalogue[name]


def _default(api: Api) -> str:
    """The name that stands for none. Some server must have registered."""
    return api.settings.default_model or next(iter(_catalogue(api)))


def _catalogue(api: Api) -> dict[str, ModelInfo]:
    """Name that a client may use → model. A served name wins over an alias of the same name."""
    served = {model.name: model for model in api.service.models()}
    aliases = {alias: served[name] for alias, name in api.settings.model_aliases.items() if name in served}
    return served | {alias: model for alias, model in aliases.items() if alias not in served}


def _describe(name: str, model: ModelInfo, api: Api) -> dict[str, object]:
    """As OpenAI does it; then the names of the LoRAs that a request for it may name, and what else it may ask."""
    loras = sorted(adapter.name for adapter in model.adapters)
    told: dict[str, object] = {
        "id": name,
        "object": "model",
        "created": api.started,
        "owned_by": "disagfusion",
        "loras": loras,
    }
    return told | {"default": name == _default(api), "abilities": abilities(model, api.settings)}
