"""Whether a preset goes with what is loaded: its dictionaries and features, those of its checks too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerserve.core.errors import InvalidRequestError, NotFoundError
from steerserve.steering.scales import UnknownDosesError

if TYPE_CHECKING:
    from steerserve.core.yaml_document import YamlPath
    from steerserve.dictionaries.registry import RegistrySnapshot
    from steerserve.presets.preset import Preset
    from steerserve.steering.resolve import SteeringResolver

_PREFIX = "steering."


def check_fit(preset: Preset, resolver: SteeringResolver, snapshot: RegistrySnapshot, model_id: str) -> None:
    """Check a preset against the served model and its dictionaries. Not for an event loop.

    Raises:
        PresetError: it cannot be used here; the message says which line of it.
    """
    if (misfit := preset.misfit(model_id)) is not None:
        raise preset.refusal(("model",), misfit)
    edits = [edit.model_dump(exclude_unset=True) for edit in preset.edits]
    try:
        resolver.resolve({"edits": edits} if edits else None, snapshot)
    except UnknownDosesError:  # which will be measured when they are needed
        pass
    except InvalidRequestError as error:
        path = _path(error.param)
        raise preset.refusal(path, error.message.replace(f"{_PREFIX}edits[", "edits["), error.code) from error
    for place, check in enumerate(preset.content.checks):
        if (asked := check.activates) is None:
            continue
        path = ("checks", place, "activates")
        try:
            dictionary = snapshot.find(asked.dictionary, "dictionary")
        except (InvalidRequestError, NotFoundError) as error:
            raise preset.refusal((*path, "dictionary"), error.message) from error
        if asked.feature >= dictionary.d_sae:
            last = dictionary.d_sae - 1
            sentence = f"dictionary {dictionary.id!r} has features 0 to {last}, and not {str(asked.feature)[:20]}"
            raise preset.refusal((*path, "feature"), sentence)


def _path(param: str | None) -> YamlPath:
    """Read a path such as `steering.edits[0].feature`."""
    parts = (param or "").removeprefix(_PREFIX).replace("[", ".").replace("]", "").split(".")
    return tuple(int(part) if part.isdigit() else part for part in parts if part)
