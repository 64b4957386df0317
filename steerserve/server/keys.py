"""API keys with two scopes: `inference` for routes under /v1, `admin` for routes under /admin and /v1."""

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

_BEARER = HTTPBearer(auto_error=False, description="A key of the server's configuration, if it has any.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")


def require_inference(request: Request, runtime: RuntimeDep, _documented: Credentials) -> None:
    """Check that a request may use the routes under /v1; if no keys are configured, every request may.

    Raises:
        AuthenticationError: the key is missing or unknown.
    """
    settings = runtime.settings.server
    if settings.api_keys or settings.admin_keys:
        token = _bearer_token(request)
        # Both lists are always compared, so that the time taken does not reveal which list has the key.
        if not _matches(token, settings.api_keys) | _matches(token, settings.admin_keys):
            raise _unknown_key()


def require_admin(request: Request, runtime: RuntimeDep, _documented: Credentials) -> None:
    """Check that a request may use the routes under /admin; if no keys are configured, only local requests may.

    Raises:
        AuthenticationError: the key is missing or unknown.
        PermissionDeniedError: the key is not an admin key, or no keys are configured and the request is not local.
    """
    settings = runtime.settings.server
    if not settings.api_keys and not settings.admin_keys:
        if not is_local(request):
            message = (
                "No keys are configured, so this route accepts only requests from the server's own machine. Configure "
                "an admin key (STEERSERVE_ADMIN_KEY)."
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
    """Tell whether a request comes from this machine, and neither through a proxy nor from a foreign web page.

    The address is not enough: a proxy on this machine has a local address, and so has a foreign web page in a browser
    on it, which connects directly or through a host name that resolves to this machine.
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
    return token.strip().encode("latin-1")  # the bytes as sent: Starlette decodes headers as Latin-1


def _matches(token: bytes, keys: Iterable[SecretStr]) -> bool:
    """Compare with every key, in a time that depends neither on the contents nor on the lengths of the keys."""
    digest = hashlib.sha256(token).digest()
    is_match = False
    for key in keys:
        is_match |= hmac.compare_digest(digest, hashlib.sha256(key.get_secret_value().encode()).digest())
    return is_match


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
