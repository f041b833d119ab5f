"""JSON to pydantic models, and pydantic's complaints in OpenAI's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from gateway.api.errors import ApiError
from gateway.api.schema import NOT_SERVED

Body = TypeVar("Body", bound=BaseModel)


class Wording(NamedTuple):
    """Templates over ``param``, ``number`` (integer or decimal), pydantic's message and the context of its error."""

    message: str
    code: str


NOT_AN_OBJECT = Wording("The body must be a JSON object.", "invalid_type")
OTHERWISE = Wording("Invalid '{param}': {msg}.", "invalid_type")
UNSUPPORTED = Wording("'{param}' is not supported here.", "unsupported_parameter")
WORDINGS = {
    "json_invalid": Wording("The body is not valid JSON: {error}.", "invalid_json"),
    "model_type": NOT_AN_OBJECT,
    "model_attributes_type": NOT_AN_OBJECT,
    "missing": Wording("Missing required parameter: '{param}'.", "missing_required_parameter"),
    "extra_forbidden": Wording("Unknown parameter: '{param}'.", "unknown_parameter"),
    "literal_error": Wording("Invalid '{param}': expected {expected}.", "invalid_value"),
    "finite_number": Wording("Invalid '{param}': {msg}.", "invalid_value"),
    "string_too_long": Wording("Invalid '{param}': at most {max_length} characters.", "string_above_max_length"),
    "too_long": Wording("Invalid '{param}': at most {max_length} entries, not {actual_length}.", "invalid_value"),
    "unprintable": Wording("Invalid '{param}': {msg}.", "invalid_value"),
    "blank": Wording("Invalid '{param}': {msg}.", "string_below_min_length"),
    "string_too_short": Wording("Invalid '{param}': at least {min_length} characters.", "string_below_min_length"),
    "less_than_equal": Wording("Invalid '{param}': at most {le}.", "{number}_above_max_value"),
    "greater_than_equal": Wording("Invalid '{param}': at least {ge}.", "{number}_below_min_value"),
    "greater_than": Wording("Invalid '{param}': above {gt}.", "{number}_below_min_value"),
}
"""Pydantic's error type → ours."""


def parse(schema: type[Body], raw: bytes) -> Body:
    """A JSON document as ``schema``. Raises ``ApiError`` for the first thing that is wrong."""
    try:
        return schema.model_validate_json(raw)
    except ValidationError as error:
        raise from_pydantic(error.errors(include_url=False)) from None


def validate(schema: type[Body], given: Mapping[str, Any]) -> Body:
    """What a form or a query holds, all of it text, as ``schema``. Raises ``ApiError``."""
    try:
        return schema.model_validate(given)
    except ValidationError as error:
        raise from_pydantic(error.errors(include_url=False)) from None


def from_pydantic(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first of pydantic's problems, with OpenAI's code for it."""
    problem = problems[0]
    param = ".".join(str(part) for part in problem["loc"]) or None
    context = problem.get("ctx", {})
    limit = context.get("le", context.get("ge", context.get("gt")))
    words = {
        **context,
        "param": param,
        "number": "integer" if isinstance(limit, int) else "decimal",
        "msg": problem["msg"].replace("Input should be", "expected"),
    }
    wording = WORDINGS.get(problem["type"], OTHERWISE)
    if problem["type"] == "extra_forbidden" and param in NOT_SERVED:
        wording = UNSUPPORTED
    return ApiError(wording.message.format_map(words), code=wording.code.format_map(words), param=param)
