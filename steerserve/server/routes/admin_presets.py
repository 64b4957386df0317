"""`/admin/presets`: reading, checking, writing and deleting preset files while the server generates."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import Response

from steerserve.core.errors import InvalidRequestError, NotFoundError, PresetError
from steerserve.presets.library import check_name
from steerserve.presets.naming import model_with
from steerserve.presets.preset import MAX_FILE_BYTES, SUFFIX, decode_preset, parse_preset
from steerserve.presets.schema import PresetFile
from steerserve.presets.writing import parse_json_preset
from steerserve.server.body import content_type_of, parse_json, read_body
from steerserve.server.dependencies import RuntimeDep
from steerserve.server.keys import require_admin
from steerserve.server.openapi import error_responses, request_body, text_response
from steerserve.wire.catalog import DeletedPreset, PresetList, PresetObject

if TYPE_CHECKING:
    from steerserve.presets.library import PresetSnapshot
    from steerserve.presets.preset import Preset
    from steerserve.runtime import Runtime

PresetName = Annotated[str, Path(description="Name of the preset, as `/admin/presets` lists it.")]
Version = Annotated[
    Literal["current", "previous"],
    Query(description="`previous` is the version that the last PUT or DELETE replaced."),
]
_YAML = "application/yaml"
_YAML_TYPES = frozenset({_YAML, "application/x-yaml", "text/yaml", "text/x-yaml", "text/plain"})


def _check_path(request: Request) -> None:
    """Refuse a name that ends in a line break, which the router would ignore."""
    path: str = request.scope["path"]
    if path.endswith("\n"):
        check_name(path.rpartition("/")[2])


router = APIRouter(tags=["Presets"], dependencies=[Depends(require_admin), Depends(_check_path)])


@router.get("/admin/presets")
async def list_presets(runtime: RuntimeDep) -> PresetList:
    """List all presets, including those that are broken or for another model."""
    return await asyncio.to_thread(_listed, runtime)


@router.get("/admin/presets/{name:path}", response_model=PresetObject, responses=text_response(_YAML))
async def get_preset(name: PresetName, request: Request, runtime: RuntimeDep, version: Version = "current") -> Response:
    """Return one preset with the text of its file, or only the text if the header `accept` asks for YAML."""
    preset = await asyncio.to_thread(_find, runtime, name, version)
    if "yaml" in request.headers.get("accept", ""):
        return Response(preset.text or "", media_type=f"{_YAML}; charset=utf-8")
    return Response(preset.model_dump_json(), media_type="application/json")


@router.put(
    "/admin/presets/{name:path}",
    response_model=PresetObject,
    responses={
        201: {"description": "The preset is new."},
        **error_responses(
            413, status_400="The preset is wrong; the message says what, where, and what would be right."
        ),
    },
    openapi_extra=request_body(PresetFile, _YAML),
)
async def put_preset(name: PresetName, request: Request, runtime: RuntimeDep) -> Response:
    """Check a preset completely and write its file, which the next request uses; the previous version is kept."""
    kind = content_type_of(request)
    if kind not in {*_YAML_TYPES, "application/json"}:
        got = f"not {kind[:100]!r}" if kind else "which is missing"
        message = f"The body must be YAML or JSON, with the header 'Content-Type: {_YAML}' or application/json, {got}."
        raise InvalidRequestError(message)
    check_name(name)
    body = await read_body(request, min(runtime.settings.server.max_body_bytes, MAX_FILE_BYTES))
    is_new, written = await asyncio.to_thread(_put, runtime, name, body, is_json=kind == "application/json")
    return Response(written.model_dump_json(), 201 if is_new else 200, media_type="application/json")


@router.delete("/admin/presets/{name:path}")
async def delete_preset(name: PresetName, runtime: RuntimeDep) -> DeletedPreset:
    """Delete a preset's file; its text is kept as the previous version. Running requests are not affected."""
    await asyncio.to_thread(runtime.presets.delete, name)
    return DeletedPreset(name=name)


def _put(runtime: Runtime, name: str, body: bytes, *, is_json: bool) -> tuple[bool, PresetObject]:
    """Return whether the preset is new, and the preset as written: others may have changed the file since."""
    file = f"{name}{SUFFIX}"
    if is_json:
        value, folder = parse_json(body), runtime.presets.folder
        preset = parse_json_preset(value, body.decode("utf-8-sig"), folder=folder, file=file, name=name)
    else:
        preset = parse_preset(decode_preset(body, file=file), file=file, name=name)
    runtime.check_preset(preset)
    is_new = runtime.presets.put(name, preset.text)
    return is_new, _described(runtime, name, preset, None, preset.text)


def _listed(runtime: Runtime) -> PresetList:
    snapshot = runtime.presets.snapshot()
    names = sorted({*snapshot.presets, *snapshot.broken})
    return PresetList(data=[_object(runtime, snapshot, name) for name in names])


def _find(runtime: Runtime, name: str, version: str) -> PresetObject:
    snapshot = runtime.presets.snapshot()
    if version == "previous":
        return _previous(runtime, snapshot, name)
    if name not in snapshot.presets and name not in snapshot.broken:
        raise snapshot.unknown(name)
    return _object(runtime, snapshot, name, text=runtime.presets.text(name))


def _previous(runtime: Runtime, snapshot: PresetSnapshot, name: str) -> PresetObject:
    text = runtime.presets.previous(name)
    if text is None:
        message = f"No previous version of the preset {name[:100]!r} is kept."
        raise NotFoundError(message, param="version", code="preset_not_found")
    try:
        preset = parse_preset(text, file=f"{name}{SUFFIX}", name=name)
        problem = preset.misfit(runtime.model_id)
    except PresetError as error:
        preset, problem = None, error.message
    return _described(runtime, name, preset, problem, text, is_bundled=name in snapshot.bundled)


def _object(runtime: Runtime, snapshot: PresetSnapshot, name: str, *, text: str | None = None) -> PresetObject:
    preset, problem = snapshot.presets.get(name), snapshot.broken.get(name)
    if problem is None and preset is not None:
        problem = preset.misfit(runtime.model_id) or runtime.preset_problem(preset)
    return _described(runtime, name, preset, problem, text, is_bundled=name in snapshot.bundled)


def _described(
    runtime: Runtime,
    name: str,
    preset: Preset | None,
    problem: str | None,
    text: str | None,
    *,
    is_bundled: bool = False,
) -> PresetObject:
    content = preset.content if preset is not None else None
    dumped: dict[str, Any] = content.model_dump(mode="json", exclude_unset=True) if content is not None else {}
    return PresetObject(
        name=name,
        id=model_with(runtime.model_id, [name]),
        origin="bundled" if is_bundled else "folder",
        version=content.version if content is not None else None,
        description=content.description if content is not None else None,
        model=content.model if content is not None else None,
        system=content.system if content is not None else None,
        sampling=dumped.get("sampling", {}),
        edits=dumped.get("edits", []),
        checks=dumped.get("checks", []),
        has_previous=runtime.presets.has_previous(name),
        problem=problem,
        text=text,
    )
