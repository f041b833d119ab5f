"""The body of ``POST /v1/images/edits``: a form or a JSON object, one strict model for both; and its pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import msgspec
from pydantic import Field, TypeAdapter, ValidationError

from gateway.api import controls, guiders
from gateway.api.errors import ApiError
from gateway.api.forms import Form, FormFile
from gateway.api.lora_form import PART, from_parts
from gateway.api.parsing import NOT_AN_OBJECT, from_pydantic, parse
from gateway.api.schema import NOT_SERVED, GenerationBody

MAX_PICTURES = 16
MAX_URL = 20_971_520
"""Characters of an ``image_url``."""

NO_TEXT = ("", "None", "null")
"""What clients send as the text of nothing."""

CONTROL_PART = re.compile(r"(control_image(\[\d{0,2}\])?|ip_adapter_image)")
PICTURE_PART = re.compile(r"image(\[\d{0,2}\])?")
LINK_PART = re.compile(r"(image_url|reference_images)(\[\d{0,2}\])?")

Value = TypeVar("Value")


class EditBody(GenerationBody):
    """All but the pictures."""

    strength: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    input_fidelity: Literal["high", "low"] | None = None


FIELDS = EditBody.field_names()


@dataclass(frozen=True, slots=True)
class Inline:
    """A data URL, which may lie where the body lies."""

    url: memoryview
    as_json: bool = False
    """With the escapes of a JSON text, if any: they are looked for only when it cannot be read without."""


@dataclass(frozen=True, slots=True)
class Remote:
    url: str


@dataclass(frozen=True, slots=True)
class FileId:
    file_id: str


Source = FormFile | Inline | Remote | FileId


@dataclass(frozen=True, slots=True)
class Edit:
    body: EditBody
    pictures: tuple[Source, ...]
    mask: Source | None
    steering: Mapping[str, Source] = field(default_factory=dict)
    """Input name of the blocks → a picture for each of the body's ControlNets, and for its IP-Adapter."""

    def __post_init__(self) -> None:
        if not self.pictures:
            raise ApiError("Missing required parameter: 'image'.", code="missing_required_parameter", param="image")
        if len(self.pictures) > MAX_PICTURES:
            raise ApiError(
                f"Too many pictures: at most {MAX_PICTURES}, not {len(self.pictures)}.",
                code="invalid_value",
                param="image",
            )


# --- forms ------------------------------------------------------------------------------------------------------------


def from_form(form: Form) -> Edit:
    """Raises ``ApiError``."""
    values: dict[str, str] = {}
    pictures: list[Source] = []
    masks: list[Source] = []
    steering: list[FormFile] = []
    adapters: list[tuple[str, str]] = []
    for file in form.files:
        _put(file, pictures, masks, steering, values)
    for name, value in form.fields:
        if PICTURE_PART.fullmatch(name) or LINK_PART.fullmatch(name):
            pictures += _text_link(name, value)
        elif name == "mask":
            masks += _text_link(name, value)
        elif PART.fullmatch(name):
            adapters += [] if value in NO_TEXT else [(name, value)]
        elif name in values and name in FIELDS:
            raise ApiError(f"'{name}' was sent more than once.", code="invalid_value", param=name)
        else:
            values[name] = value
    if len(masks) > 1:
        raise ApiError("'mask' was sent more than once.", code="invalid_value", param="mask")
    nested = {
        name: _from_json_text(name, adapter, values.pop(name))
        for name, adapter in _NESTED.items()
        if name in values and values[name] not in NO_TEXT
    }
    texts = {name: value for name, value in values.items() if name not in _NESTED}
    body = _from_texts(texts).model_copy(update={**from_parts(adapters), **nested})
    return Edit(body, tuple(pictures), masks[0] if masks else None, control_sources(body, steering))


def _put(
    file: FormFile, pictures: list[Source], masks: list[Source], steering: list[FormFile], values: dict[str, str]
) -> None:
    """Where it belongs by its name."""
    if CONTROL_PART.fullmatch(file.name):
        steering.append(file)
    elif PICTURE_PART.fullmatch(file.name):
        pictures.append(file)
    elif file.name == "mask":
        masks.append(file)
    else:
        values[file.name] = ""  # to be refused by its name


_NESTED: Mapping[str, TypeAdapter[Any]] = {
    guiders.FIELD: TypeAdapter(guiders.AskedGuider),
    controls.FIELD: TypeAdapter(controls.ControlEntries),
    controls.IP_ADAPTER: TypeAdapter(controls.AskedIPAdapter),
}
"""Fields that a form has as JSON texts."""


def _from_json_text(name: str, adapter: TypeAdapter[Any], text: str) -> Any:
    """Raises ``ApiError``."""
    try:
        return adapter.validate_python(text)
    except ValidationError as error:
        problems = [{**each, "loc": (name, *each["loc"])} for each in error.errors(include_url=False)]
        raise from_pydantic(problems) from None


def control_sources(body: GenerationBody, files: Sequence[FormFile] = ()) -> dict[str, Source]:
    """Input name of the blocks → the picture that steers, and ``ip_adapter_image``. ``files`` are, in order, for those
    that name none, the ControlNets first. Raises ``ApiError``."""
    wanted = [
        (f"control_image_{index}" if index else "control_image", f"{controls.FIELD}.{index}.image", entry.image)
        for index, entry in enumerate(body.control or ())
    ]
    if body.ip_adapter is not None:
        wanted.append(("ip_adapter_image", f"{controls.IP_ADAPTER}.image", body.ip_adapter.image))
    left, found = list(files), dict[str, Source]()
    for name, param, image in wanted:
        if image is None and not left:
            raise ApiError(f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param)
        found[name] = left.pop(0) if image is None else _steering(image, param)
    if left:
        raise ApiError(
            f"There are {len(files)} files 'control_image' or 'ip_adapter_image'; send one for each 'control' and "
            "'ip_adapter' that names no 'image'.",
            code="invalid_value",
            param=left[0].name.partition("[")[0],
        )
    return found


def _steering(image: controls.ControlPicture, param: str) -> Source:
    if image.file_id is not None:
        return FileId(image.file_id)
    for source in _text_link(param, image.image_url or ""):
        return source
    raise ApiError(f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param)


def _text_link(name: str, value: str) -> Iterable[Source]:
    """A picture's place as a text. A part without a file name that is none must be meant as a file."""
    if value in NO_TEXT:
        return
    if not value.startswith(("data:", "http:", "https:")):
        raise ApiError(
            f"Invalid '{name}': expected a file, with a file name, or a url that begins with https:// or data:.",
            code="invalid_type",
            param=name,
        )
    if len(value) > MAX_URL:
        raise _too_long(name)
    yield Inline(memoryview(value.encode())) if value.startswith("data:") else Remote(value)


def _from_texts(values: Mapping[str, str]) -> EditBody:
    """Numbers and truth values are read from their texts, as ``str()`` of Python or JavaScript writes them."""
    given = {}
    for name, value in values.items():
        root = name.partition("[")[0]
        name = root if root in NOT_SERVED else name
        if name in ("prompt", "negative_prompt") or name not in FIELDS or value not in NO_TEXT:
            given[name] = value
    try:
        return EditBody.model_validate_strings(given, strict=False)
    except ValidationError as error:
        raise from_pydantic(error.errors(include_url=False)) from None


# --- JSON -------------------------------------------------------------------------------------------------------------


NULL = msgspec.Raw(b"null")
BAD_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Reference(msgspec.Struct, forbid_unknown_fields=True):
    image_url: msgspec.Raw = NULL
    file_id: str | None = None


def from_json(raw: memoryview, max_fields_bytes: int) -> Edit:
    """Data URLs stay where they are, in ``raw``. ``max_fields_bytes`` is for the rest. Raises ``ApiError``."""
    try:
        fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise ApiError(NOT_AN_OBJECT.message, code=NOT_AN_OBJECT.code) from None
    except BAD_JSON as error:
        raise ApiError(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    references = _take(fields, "images", list[_Reference]) or []
    mask = _take(fields, "mask", _Reference)
    pictures = [_source(reference, f"images.{index}") for index, reference in enumerate(references)]
    links = _take(fields, "reference_images", list[msgspec.Raw]) or []
    pictures += [_json_link(link, "reference_images") for link in links]
    link = fields.pop("image_url", NULL)
    if not _is_null(link):
        pictures.insert(0, _json_link(link, "image_url"))
    if sum(memoryview(value).nbytes for value in fields.values()) > max_fields_bytes:
        raise ApiError(
            f"Request too large: all but the pictures may have {max_fields_bytes} bytes.",
            code="request_too_large",
            status=413,
        )
    body = parse(EditBody, msgspec.json.encode(fields))
    return Edit(body, tuple(pictures), None if mask is None else _source(mask, "mask"), control_sources(body))


def _is_null(raw: msgspec.Raw) -> bool:
    return bytes(memoryview(raw)[:4]) == b"null"


def _take(fields: dict[str, msgspec.Raw], name: str, kind: type[Value]) -> Value | None:
    raw = fields.pop(name, None)
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=kind | None)
    except BAD_JSON as error:
        _refuse(name, str(error))


def _refuse(name: str, why: str) -> NoReturn:
    raise ApiError(f"Invalid '{name}': {why}.", code="invalid_type", param=name)


def _source(reference: _Reference, param: str) -> Source:
    has_url = not _is_null(reference.image_url)
    if has_url == (reference.file_id is not None):
        raise ApiError(
            f"Invalid '{param}': give it exactly one of 'image_url' and 'file_id'.", code="invalid_value", param=param
        )
    if reference.file_id is not None:
        return FileId(reference.file_id)
    return _json_link(reference.image_url, f"{param}.image_url")


def _json_link(raw: msgspec.Raw, param: str) -> Source:
    view = memoryview(raw)
    if view.nbytes > MAX_URL + 2:
        raise _too_long(param)
    if bytes(view[1:6]).lower() == b"data:":
        return Inline(view[1:-1], as_json=True)
    try:
        return Remote(msgspec.json.decode(raw, type=str))
    except BAD_JSON as error:
        _refuse(param, str(error))


def _too_long(param: str) -> ApiError:
    return ApiError(f"Invalid '{param}': at most {MAX_URL} characters.", code="string_above_max_length", param=param)
