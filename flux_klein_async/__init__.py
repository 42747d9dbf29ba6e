"""Asyncio client for RunComfy's Model API, made for FLUX.2 [klein] 4B text to image.

Where things are:

    errors, events, models, options   the vocabulary
    api/             what the service says            transport/     bytes, retries, throttling
    polling/         when to poll                     journal/       what was paid for
    operations/      submit, wait, download, fan out  client         the verbs
    batch/           a file of prompts                cli/           the `flux-klein` command
    emulator/        the service, without a token     testing/       pytest fixtures
    integrations/    web frameworks, telemetry, notebooks

A name is imported from its module when it is first used: the command line needs few of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"
# The ids of the models that have typed inputs. Here, so that the command line completes them without pydantic.
KLEIN_4B_TEXT_TO_IMAGE = "blackforestlabs/flux-2-klein/4b/text-to-image"
KLEIN_9B_TEXT_TO_IMAGE = "blackforestlabs/flux-2-klein/9b/text-to-image"

if TYPE_CHECKING:
    from flux_klein_async.api.messages import Kind
    from flux_klein_async.client import FluxKleinClient, RequestHandle
    from flux_klein_async.errors import (
        APIConnectionError,
        APIStatusError,
        APITimeoutError,
        AuthenticationError,
        BudgetExceededError,
        ClientClosedError,
        ConfigurationError,
        DownloadError,
        FanOutHaltedError,
        FluxKleinError,
        GenerationCancelledError,
        GenerationFailedError,
        InputRejectedError,
        InsufficientBalanceError,
        InvalidInputError,
        InvalidResponseError,
        ItemClaimedError,
        JournalError,
        NotFoundError,
        PermissionDeniedError,
        RateLimitError,
        ResultNotReadyError,
        ServerError,
        SubmissionUncertainError,
        WaitTimeoutError,
    )
    from flux_klein_async.events import Event
    from flux_klein_async.journal.base import (
        AccountJournal,
        Claim,
        Entry,
        ItemClaims,
        ItemJournal,
        Journal,
        Reservation,
        SpendingLimit,
    )
    from flux_klein_async.journal.budget import Budget

    # Not in __all__: `import *` must work without their extras.
    from flux_klein_async.journal.postgres import PostgresJournal as PostgresJournal  # exported
    from flux_klein_async.journal.sqlite import SqliteJournal
    from flux_klein_async.journal.states import Action, EntryState
    from flux_klein_async.journal.writer import Spending
    from flux_klein_async.models import (
        CancelOutcome,
        GenerationOutput,
        GenerationResult,
        HostedFile,
        Input,
        ModelInfo,
        Outcome,
        RequestState,
        RequestStatus,
        SavedFile,
        TextToImage9BInput,
        TextToImageInput,
        Timings,
    )
    from flux_klein_async.operations.fanout import FanOut
    from flux_klein_async.operations.files import FileBytes
    from flux_klein_async.options import DEFAULT, Limits, RetryPolicy
    from flux_klein_async.polling.adaptive import AdaptivePolling
    from flux_klein_async.polling.policies import (
        ExponentialPolling,
        FixedPolling,
        Observation,
        PollPolicy,
        Progress,
        Queued,
        SavedPolicy,
    )
    from flux_klein_async.schema import InputField
    from flux_klein_async.transport.redis import RedisLimiter as RedisLimiter  # exported
    from flux_klein_async.transport.throttle import Limiter, SharedLimiter
else:  # where each name is; type checkers read the imports above
    _HOMES = {
        "api.messages": "Kind",
        "client": "FluxKleinClient RequestHandle",
        "errors": """
            APIConnectionError APIStatusError APITimeoutError AuthenticationError BudgetExceededError
            ClientClosedError ConfigurationError DownloadError FanOutHaltedError FluxKleinError
            GenerationCancelledError GenerationFailedError InputRejectedError InsufficientBalanceError
            InvalidInputError InvalidResponseError ItemClaimedError JournalError NotFoundError
            PermissionDeniedError RateLimitError ResultNotReadyError ServerError SubmissionUncertainError
            WaitTimeoutError
        """,
        "events": "Event",
        "journal.base": """
            AccountJournal Claim Entry ItemClaims ItemJournal Journal Reservation SpendingLimit
        """,
        "journal.budget": "Budget",
        "journal.sqlite": "SqliteJournal",
        "journal.states": "Action EntryState",
        "journal.writer": "Spending",
        "models": """
            CancelOutcome GenerationOutput GenerationResult HostedFile Input ModelInfo Outcome RequestState
            RequestStatus SavedFile TextToImage9BInput TextToImageInput Timings
        """,
        "operations.fanout": "FanOut",
        "operations.files": "FileBytes",
        "options": "DEFAULT Limits RetryPolicy",
        "polling.adaptive": "AdaptivePolling",
        "polling.policies": "ExponentialPolling FixedPolling Observation PollPolicy Progress Queued SavedPolicy",
        "schema": "InputField",
        "transport.throttle": "Limiter SharedLimiter",
        "journal.postgres": "PostgresJournal",
        "transport.redis": "RedisLimiter",
    }
    _MODULES = {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names.split()}
    _PUBLIC_MODULES = {"errors", "events", "models", "options"}

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            return getattr(import_module(_MODULES[name]), name)
        if name in _PUBLIC_MODULES:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_PUBLIC_MODULES})


__all__ = [
    "DEFAULT",
    "KLEIN_4B_TEXT_TO_IMAGE",
    "KLEIN_9B_TEXT_TO_IMAGE",
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "AccountJournal",
    "Action",
    "AdaptivePolling",
    "AuthenticationError",
    "Budget",
    "BudgetExceededError",
    "CancelOutcome",
    "Claim",
    "ClientClosedError",
    "ConfigurationError",
    "DownloadError",
    "Entry",
    "EntryState",
    "Event",
    "ExponentialPolling",
    "FanOut",
    "FanOutHaltedError",
    "FileBytes",
    "FixedPolling",
    "FluxKleinClient",
    "FluxKleinError",
    "GenerationCancelledError",
    "GenerationFailedError",
    "GenerationOutput",
    "GenerationResult",
    "HostedFile",
    "Input",
    "InputField",
    "InputRejectedError",
    "InsufficientBalanceError",
    "InvalidInputError",
    "InvalidResponseError",
    "ItemClaimedError",
    "ItemClaims",
    "ItemJournal",
    "Journal",
    "JournalError",
    "Kind",
    "Limiter",
    "Limits",
    "ModelInfo",
    "NotFoundError",
    "Observation",
    "Outcome",
    "PermissionDeniedError",
    "PollPolicy",
    "Progress",
    "Queued",
    "RateLimitError",
    "RequestHandle",
    "RequestState",
    "RequestStatus",
    "Reservation",
    "ResultNotReadyError",
    "RetryPolicy",
    "SavedFile",
    "SavedPolicy",
    "ServerError",
    "SharedLimiter",
    "Spending",
    "SpendingLimit",
    "SqliteJournal",
    "SubmissionUncertainError",
    "TextToImage9BInput",
    "TextToImageInput",
    "Timings",
    "WaitTimeoutError",
    "__version__",
]
