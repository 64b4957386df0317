"""The tree of errors that steerserve raises on purpose.

An error knows what went wrong (`message`, which must stand alone), a stable `code` and the `param` it speaks of.
It does not know HTTP: `server/errors.py` holds the only table from these classes to statuses.
"""


class SteerserveError(Exception):
    """Base of every error that steerserve raises on purpose."""

    default_code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        """Keep the message, and the parameter and code that clients read beside it."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else self.default_code


class InvalidRequestError(SteerserveError):
    """The client asked for something that cannot be honoured; the message says what would be right."""

    default_code = "invalid_value"


class ContextLengthError(InvalidRequestError):
    """The prompt does not fit the context."""

    default_code = "context_length_exceeded"


class UnsupportedParameterError(InvalidRequestError):
    """A documented field that this server does not support."""

    default_code = "unsupported_parameter"


class AuthenticationError(SteerserveError):
    """No key, or one that is not known."""

    default_code = "invalid_api_key"


class PermissionDeniedError(SteerserveError):
    """A known key without the scope that the route needs."""

    default_code = "insufficient_scope"


class ModelNotFoundError(SteerserveError):
    """A model id that this server does not serve."""

    default_code = "model_not_found"


class NotFoundError(SteerserveError):
    """A resource (not a model) that does not exist."""

    default_code = "not_found"


class ConflictError(SteerserveError):
    """What is under way now stands in the way: a dictionary that is busy, a folder that another server works in."""

    default_code = "conflict"


class DictionaryBusyError(ConflictError):
    """A dictionary of that id is being loaded right now; the same request can be made again in a moment."""

    default_code = "dictionary_busy"


class BodyTooLargeError(SteerserveError):
    """A request body over the configured limit."""

    default_code = "request_too_large"


class QueueFullError(SteerserveError):
    """The waiting line is full; try again after `retry_after_s` seconds."""

    default_code = "service_unavailable"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        """Keep the number of seconds after which a place is likely to be free."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnavailableError(QueueFullError):
    """The server is loading or stopping."""


class EngineError(SteerserveError):
    """A forward pass failed; the request it belonged to is lost, the server goes on."""


class StartupError(SteerserveError):
    """Something that keeps a command from starting; the command line prints it as one line and exits with 2."""


class ConfigError(StartupError):
    """A configuration file, environment variable or flag that cannot be used."""


class ModelSourceError(StartupError):
    """A model that cannot be found, fetched, verified or supported."""


class DictionarySourceError(StartupError):
    """A dictionary that cannot be found, verified or used with this model."""

    default_code = "invalid_dictionary"

    def __init__(self, message: str, *, param: str | None = "source", code: str | None = None) -> None:
        """Speak of the source, which is what names a dictionary in a request."""
        super().__init__(message, param=param, code=code)


class VectorError(StartupError):
    """A stored steering vector, or a file to be imported as one, that cannot be used."""

    default_code = "invalid_vector"


class PresetError(StartupError):
    """A preset's file that cannot be used."""

    default_code = "invalid_preset"


class PresetFolderError(SteerserveError):
    """The folder of presets cannot be written."""

    default_code = "presets_unwritable"


class CorpusError(StartupError):
    """Text for training or evaluation that cannot be found or read."""


class FeatureStoreError(StartupError):
    """A file of a dictionary's statistics, snippets and labels that cannot be read or written."""

    default_code = "feature_store_unusable"
