"""Asyncio client for RunComfy's Model API, made for FLUX.2 [klein] 4B text to image.

Where things are:

    client, handle   the verbs                      errors, models, events, options   the vocabulary
    api/             what the service says          transport/   bytes, retries, pacing
    polling/         when to poll                   journal/     what was paid for
    operations/      submit, wait, download, fan out
    batch/           files of many rows             integrations/  web frameworks, logging, telemetry, notebooks
    emulator/        the service, without a token   testing/     pytest fixtures on it
    cli/             the `flux-klein` command
"""

from flux_klein_async._version import __version__
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
from flux_klein_async.journal.base import Entry, EntryState, ItemJournal, Journal, Reservation, SpendingLimit
from flux_klein_async.journal.budget import Budget
from flux_klein_async.journal.sqlite import SqliteJournal
from flux_klein_async.models import (
    KLEIN_4B_TEXT_TO_IMAGE,
    KLEIN_9B_TEXT_TO_IMAGE,
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
from flux_klein_async.transport.throttle import Limiter

__all__ = [
    "DEFAULT",
    "KLEIN_4B_TEXT_TO_IMAGE",
    "KLEIN_9B_TEXT_TO_IMAGE",
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "AdaptivePolling",
    "AuthenticationError",
    "Budget",
    "BudgetExceededError",
    "CancelOutcome",
    "ClientClosedError",
    "ConfigurationError",
    "DownloadError",
    "Entry",
    "EntryState",
    "Event",
    "ExponentialPolling",
    "FixedPolling",
    "FluxKleinClient",
    "FluxKleinError",
    "GenerationCancelledError",
    "GenerationFailedError",
    "GenerationOutput",
    "GenerationResult",
    "HostedFile",
    "Input",
    "InputRejectedError",
    "InsufficientBalanceError",
    "InvalidInputError",
    "InvalidResponseError",
    "ItemClaimedError",
    "ItemJournal",
    "Journal",
    "JournalError",
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
    "SpendingLimit",
    "SqliteJournal",
    "SubmissionUncertainError",
    "TextToImage9BInput",
    "TextToImageInput",
    "Timings",
    "WaitTimeoutError",
    "__version__",
]
