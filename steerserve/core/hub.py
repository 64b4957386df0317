"""Sentences for the errors of huggingface_hub's client: one wording for models and dictionaries."""

from __future__ import annotations

_TRANSPORTS = frozenset({"httpx", "httpcore"})
UNREACHABLE = (
    "the hub does not answer, and the local cache does not have the files. Check the network (HF_ENDPOINT, proxies)"
)


def hub_failure(error: Exception, repo: str) -> str | None:
    """Return a clause that says why fetching from `repo` failed; None if the hub is not to blame."""
    from huggingface_hub import errors  # noqa: PLC0415 slow import, needed for hub sources alone

    clauses = {
        errors.GatedRepoError: f"the hub repository {repo} is gated: accept its terms on the hub and set HF_TOKEN",
        errors.RepositoryNotFoundError: f"the hub has no repository {repo}, or HF_TOKEN gives no access to it",
        errors.HFValidationError: f"{repo} is not a valid name of a hub repository",
        errors.LocalEntryNotFoundError: UNREACHABLE,
        errors.EntryNotFoundError: f"the hub repository {repo} lacks the folder or one of its files",
    }  # a class comes before its base class
    for kind, clause in clauses.items():
        if isinstance(error, kind):
            return clause
    if isinstance(error, errors.HfHubHTTPError):
        return f"the hub answered with status {error.response.status_code}"
    # The client's transport raises errors of its own if the hub does not answer.
    is_unreachable = isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _TRANSPORTS
    return UNREACHABLE if is_unreachable else None
