"""API keys with two scopes: `inference` for the routes under /v1, `admin` for those under /admin (and /v1 too)."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from steerserve.core.errors import AuthenticationError, PermissionDeniedError
from steerserve.server.dependencies import RuntimeDep

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import SecretStr

_BEARER = HTTPBearer(auto_error=False, description="A key from the server's configuration; none if it has none.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")


def require_inference(request: Request, runtime: RuntimeDep, _documented: Credentials) -> None:
    """Let a request pass that may generate: any does where no keys are configured.

    Raises:
        AuthenticationError: there is no key, or one that is not known.
    """
    settings = runtime.settings.server
    if settings.api_keys or settings.admin_keys:
        token = _bearer_token(request)
        # Both lists are always compared, so that the time taken does not tell which list a key is near.
        if not _matches(token, settings.api_keys) | _matches(token, settings.admin_keys):
            raise _unknown_key()


def require_admin(request: Request, runtime: RuntimeDep, _documented: Credentials) -> None:
    """Let a request pass that may administrate: without any keys, only one from this machine.

    Raises:
        AuthenticationError: there is no key, or one that is not known.
        PermissionDeniedError: the key has no admin scope, or there are no keys and the request is not local.
    """
    settings = runtime.settings.server
    if not settings.api_keys and not settings.admin_keys:
        if not is_local(request):
            message = (
                "Without keys, this route answers this machine alone. Configure an admin key (STEERSERVE_ADMIN_KEY)."
            )
            raise PermissionDeniedError(message)
        return
    token = _bearer_token(request)
    is_admin, is_inference = _matches(token, settings.admin_keys), _matches(token, settings.api_keys)
    if is_admin:
        return
    if is_inference:
        message = "This key has the scope 'inference', and this route needs 'admin'. Send an admin key."
        raise PermissionDeniedError(message)
    raise _unknown_key()


def is_local(request: Request) -> bool:
    """Tell whether a request was made on this machine, by something that a person there runs.

    The address alone does not say so: a proxy on this machine has it, and so has a web page of somebody else's in a
    browser here (directly, or with a host name of its own that it points at this machine).
    """
    client = request.client.host if request.client is not None else ""
    origin = request.headers.get("origin")
    return (
        _is_loopback(client)
        and _is_loopback(request.url.hostname or "")
        and (origin is None or _is_loopback(_host_of(origin)))
        and not any(header in request.headers for header in _FORWARDED)
    )


def _bearer_token(request: Request) -> bytes:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if not token or scheme.lower() != "bearer":
        message = (
            "You didn't provide an API key. Send one of this server's keys in the header 'Authorization: Bearer KEY'."
        )
        raise AuthenticationError(message)
    return token.strip().encode("latin-1")  # as it came: headers are bytes, which Starlette reads as Latin-1


def _matches(token: bytes, keys: Iterable[SecretStr]) -> bool:
    """Compare with every key, in a time that depends on neither what they hold nor how long they are."""
    digest = hashlib.sha256(token).digest()
    is_found = False
    for key in keys:
        is_found |= hmac.compare_digest(digest, hashlib.sha256(key.get_secret_value().encode()).digest())
    return is_found


def _unknown_key() -> AuthenticationError:
    return AuthenticationError("Incorrect API key provided. Send one of the keys that this server was configured with.")


def _host_of(origin: str) -> str:
    return origin.partition("://")[2].rpartition("@")[2].removeprefix("[").partition("]")[0].rsplit(":", 1)[0]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
