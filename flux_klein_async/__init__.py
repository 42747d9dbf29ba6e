"""Asyncio client for RunComfy's Model API, made for FLUX.2 [klein] 4B text to image.

Where things are:

    errors, events, models, options   the vocabulary
    api/             what the service says            transport/     bytes, retries, throttling
    polling/         when to poll                     journal/       what was paid for
    operations/      submit, wait, download, fan out  client         the verbs
    batch/           a file of prompts                cli/           the `flux-klein` command
    emulator/        the service, without a token     testing/       pytest fixtures
    integrations/    web frameworks, telemetry, notebooks
"""

from typing import TYPE_CHECKING

from flux_klein_async._version import __version__
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
    Action,
    Claim,
    Entry,
    EntryState,
    ItemClaims,
    ItemJournal,
    Journal,
    Reservation,
    SpendingLimit,
)
from flux_klein_async.journal.budget import Budget
from flux_klein_async.journal.sqlite import SqliteJournal
from flux_klein_async.journal.writer import Spending
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
from flux_klein_async.transport.throttle import Limiter, SharedLimiter

if TYPE_CHECKING:
    # Not in __all__: `import *` must work without their extras.
    from flux_klein_async.journal.postgres import PostgresJournal as PostgresJournal  # exported
    from flux_klein_async.transport.redis import RedisLimiter as RedisLimiter  # exported

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


def __getattr__(name: str) -> object:
    """Import what needs an extra when it is first used."""
    if name == "PostgresJournal":
        from flux_klein_async.journal.postgres import PostgresJournal  # noqa: PLC0415

        return PostgresJournal
    if name == "RedisLimiter":
        from flux_klein_async.transport.redis import RedisLimiter  # noqa: PLC0415

        return RedisLimiter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
