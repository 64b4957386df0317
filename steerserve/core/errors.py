"""The tree of errors that steerserve raises on purpose.

An error knows what went wrong (`message`, which must be understood alone), a stable `code` and the `param` it is about.
It does not know HTTP: `server/errors.py` holds the only table from these classes to statuses.
"""


class SteerserveError(Exception):
    """Base of every error that steerserve raises on purpose."""

    default_code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        """Keep the message, and the parameter and code that clients read with it."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else self.default_code


class InvalidRequestError(SteerserveError):
    """A request that cannot be honoured; the message says what would be right."""

    default_code = "invalid_value"


class ContextLengthError(InvalidRequestError):
    """The prompt does not fit the context."""

    default_code = "context_length_exceeded"


class UnsupportedParameterError(InvalidRequestError):
    """A field of OpenAI's API that this server does not support."""

    default_code = "unsupported_parameter"


class AuthenticationError(SteerserveError):
    """A request without an API key, or with an unknown one."""

    default_code = "invalid_api_key"


class PermissionDeniedError(SteerserveError):
    """A valid API key without the scope that the route needs."""

    default_code = "insufficient_scope"


class ModelNotFoundError(SteerserveError):
    """A model id that this server does not serve."""

    default_code = "model_not_found"


class NotFoundError(SteerserveError):
    """A resource (not a model) that does not exist."""

    default_code = "not_found"


class ConflictError(SteerserveError):
    """A request that running work prevents, such as a busy dictionary or a folder that another server uses."""

    default_code = "conflict"


class DictionaryBusyError(ConflictError):
    """A dictionary with the same id is being loaded; the same request can be sent again in a moment."""

    default_code = "dictionary_busy"


class BodyTooLargeError(SteerserveError):
    """A request body over the configured limit."""

    default_code = "request_too_large"


class QueueFullError(SteerserveError):
    """The queue is full; the same request can be sent again after `retry_after_s` seconds."""

    default_code = "service_unavailable"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        """Keep the number of seconds after which the queue is likely to have room."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnavailableError(QueueFullError):
    """The server is loading or stopping."""


class EngineError(SteerserveError):
    """A forward pass failed; its requests are lost, and the server goes on."""


class StartupError(SteerserveError):
    """An error that keeps a command from starting; the command line prints it as one line and exits with 2."""


class ConfigError(StartupError):
    """A configuration file, environment variable or flag that cannot be used."""


class ModelSourceError(StartupError):
    """A model that cannot be found, fetched, verified or supported."""


class DictionarySourceError(StartupError):
    """A dictionary that cannot be found, verified or used with this model."""

    default_code = "invalid_dictionary"

    def __init__(self, message: str, *, param: str | None = "source", code: str | None = None) -> None:
        """Name `source` as the parameter, the field of a request that holds a dictionary's source."""
        super().__init__(message, param=param, code=code)


class VectorError(StartupError):
    """A stored steering vector, or a file to be imported as one, that cannot be used."""

    default_code = "invalid_vector"


class PresetError(StartupError):
    """A preset file that cannot be used."""

    default_code = "invalid_preset"


class PresetFolderError(SteerserveError):
    """The folder of presets is not writable."""

    default_code = "presets_unwritable"


class CorpusError(StartupError):
    """Text for training or evaluation that does not exist or cannot be read."""


class FeatureStoreError(StartupError):
    """A feature store (statistics, snippets and labels of a dictionary) that cannot be read or written."""

    default_code = "feature_store_unusable"
