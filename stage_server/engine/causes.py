"""Why a component could not be loaded: what libraries say of it, in words for whoever runs the server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stage_server.engine.base import LoadError
from stage_server.engine.checkpoint import ComponentFiles

ONE_REVISION = "download configuration and weights again, from one revision of the model"

_LONGEST_CAUSE = 600
"""Characters of what a library says; some list every weight."""

_MISSING_PACKAGE = re.compile(r"requires the (\S+) library")
"""As transformers words it, and diffusers quotes it."""


def refuse_gaps(report: Mapping[str, Any], kind: str) -> None:
    """``report``: the library's own, which knows tied weights and those that a class may do without."""
    missing, mismatched = sorted(report["missing_keys"]), sorted(report["mismatched_keys"])
    if mismatched:
        key, stored, expected = mismatched[0]
        raise LoadError(
            f"{len(mismatched)} weights do not fit config.json: {key} is {list(stored)} in the file, and "
            f"{list(expected)} in a {kind} of this configuration; {ONE_REVISION}"
        )
    if missing:
        raise LoadError(
            f"{len(missing)} weights of a {kind} of this configuration are not in its files, {missing[0]} for one; "
            f"{ONE_REVISION}"
        )


def cause(error: Exception, files: ComponentFiles) -> str:
    """Of an ``error`` while the component was loaded, and what helps."""
    try:
        files.verify()  # what was downloaded only now
    except LoadError as damage:
        return str(damage)
    package = _MISSING_PACKAGE.search(str(error))
    if package is not None:
        name = package[1].lower()
        return f"it needs the package {name}, which is not installed here; pip install {name}"
    said, *_advice = " ".join(str(error).split()).partition(
        " If you want to instead overwrite"
    )  # to load it regardless
    return f"{type(error).__name__}: {said[:_LONGEST_CAUSE].rstrip('.')}; {ONE_REVISION}"
