"""What is wrong with the ControlNets of a request, for whoever is asked first."""

from __future__ import annotations

from collections.abc import Sequence

from wire.params import ControlUse, ModelInfo


def fault(uses: Sequence[ControlUse], info: ModelInfo) -> tuple[int, str, str] | None:
    """(Index, parameter, why) of the first thing that the model cannot do."""
    offered = {control.name: control for control in info.controls}
    for index, use in enumerate(uses):
        if use.name not in offered:
            known = f"it has {', '.join(offered)}" if offered else "it has none"
            return index, "name", f"the model '{info.name}' has no ControlNet '{use.name}'; {known}"
        modes = offered[use.name].modes
        if modes and use.mode is None:
            return index, "mode", f"the ControlNet '{use.name}' needs a 'mode' from 0 to {modes - 1}"
        if use.mode is not None and use.mode >= modes:
            takes = f"has the modes 0 to {modes - 1}, not {use.mode}" if modes else "takes no 'mode'"
            return index, "mode", f"the ControlNet '{use.name}' {takes}"
        if not use.start < use.end:
            return index, "end", f"it would end at {use.end:g} of the steps and start at {use.start:g}"
        first = uses[0]
        if use.name != first.name and (offered[use.name].alone or offered[first.name].alone):
            return index, "name", f"the ControlNets '{first.name}' and '{use.name}' cannot be used together"
        if use.mode is not None and (use.scale, use.start, use.end) != (first.scale, first.start, first.end):
            return index, "scale", f"the pictures of '{use.name}' share 'scale', 'start' and 'end'"
    return None


def workflow_of(uses: Sequence[ControlUse], plain: str, *, adapted: bool = False) -> str:
    """Which of the model's workflows ``plain`` becomes. ``adapted``: by an IP-Adapter."""
    kind = "" if not uses else "controlnet_union_" if uses[0].mode is not None else "controlnet_"
    return f"{'ip_adapter_' if adapted else ''}{kind}{plain}"
