"""Asyncio client for RunComfy's Model API, made for FLUX.2 [klein] 4B text to image.

Where things are:

    client           the verbs                        models        inputs, states, results
    errors           what goes wrong, by status       events        what `on_event` receives
    options          settings, and the variables of the environment
    api/             what the service says            transport/    bytes, retries, throttling
    polling/         when to poll                     journal/      what was paid for
    operations/      submit, wait, download, fan out  batch/        a file of prompts
    cli/             the `flux-klein` command         emulator/     the service, without a token
    integrations/    web frameworks, telemetry, ...   testing       pytest fixtures

A name is imported from its module when it is first used: the command line needs few of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"
# The ids of the models that have typed inputs. Here, so that the command line completes them without pydantic.
KLEIN_4B_TEXT_TO_IMAGE = "blackforestlabs/flux-2-klein/4b/text-to-image"
KLEIN_9B_TEXT_TO_IMAGE = "blackforestlabs/flux-2-klein/9b/text-to-image"

if TYPE_CHECKING:
    from flux_klein_async.api.messages import Kind as Kind
    from flux_klein_async.client import FluxKleinClient as FluxKleinClient
    from flux_klein_async.client import RequestHandle as RequestHandle
    from flux_klein_async.errors import APIConnectionError as APIConnectionError
    from flux_klein_async.errors import APIStatusError as APIStatusError
    from flux_klein_async.errors import APITimeoutError as APITimeoutError
    from flux_klein_async.errors import AuthenticationError as AuthenticationError
    from flux_klein_async.errors import BudgetExceededError as BudgetExceededError
    from flux_klein_async.errors import ClientClosedError as ClientClosedError
    from flux_klein_async.errors import ConfigurationError as ConfigurationError
    from flux_klein_async.errors import DownloadError as DownloadError
    from flux_klein_async.errors import FanOutHaltedError as FanOutHaltedError
    from flux_klein_async.errors import FluxKleinError as FluxKleinError
    from flux_klein_async.errors import GenerationCancelledError as GenerationCancelledError
    from flux_klein_async.errors import GenerationFailedError as GenerationFailedError
    from flux_klein_async.errors import InputRejectedError as InputRejectedError
    from flux_klein_async.errors import InsufficientBalanceError as InsufficientBalanceError
    from flux_klein_async.errors import InvalidInputError as InvalidInputError
    from flux_klein_async.errors import InvalidResponseError as InvalidResponseError
    from flux_klein_async.errors import ItemClaimedError as ItemClaimedError
    from flux_klein_async.errors import JournalError as JournalError
    from flux_klein_async.errors import NotFoundError as NotFoundError
    from flux_klein_async.errors import PermissionDeniedError as PermissionDeniedError
    from flux_klein_async.errors import RateLimitError as RateLimitError
    from flux_klein_async.errors import ResultNotReadyError as ResultNotReadyError
    from flux_klein_async.errors import ServerError as ServerError
    from flux_klein_async.errors import SubmissionUncertainError as SubmissionUncertainError
    from flux_klein_async.errors import WaitTimeoutError as WaitTimeoutError
    from flux_klein_async.events import Event as Event
    from flux_klein_async.journal.base import AccountJournal as AccountJournal
    from flux_klein_async.journal.base import Claim as Claim
    from flux_klein_async.journal.base import Entry as Entry
    from flux_klein_async.journal.base import ItemClaims as ItemClaims
    from flux_klein_async.journal.base import ItemJournal as ItemJournal
    from flux_klein_async.journal.base import Journal as Journal
    from flux_klein_async.journal.base import Reservation as Reservation
    from flux_klein_async.journal.base import SpendingLimit as SpendingLimit
    from flux_klein_async.journal.budget import Budget as Budget
    from flux_klein_async.journal.postgres import PostgresJournal as PostgresJournal
    from flux_klein_async.journal.sqlite import SqliteJournal as SqliteJournal
    from flux_klein_async.journal.states import Action as Action
    from flux_klein_async.journal.states import EntryState as EntryState
    from flux_klein_async.journal.writer import Spending as Spending
    from flux_klein_async.models import CancelOutcome as CancelOutcome
    from flux_klein_async.models import GenerationOutput as GenerationOutput
    from flux_klein_async.models import GenerationResult as GenerationResult
    from flux_klein_async.models import HostedFile as HostedFile
    from flux_klein_async.models import Input as Input
    from flux_klein_async.models import ModelInfo as ModelInfo
    from flux_klein_async.models import Outcome as Outcome
    from flux_klein_async.models import RequestState as RequestState
    from flux_klein_async.models import RequestStatus as RequestStatus
    from flux_klein_async.models import SavedFile as SavedFile
    from flux_klein_async.models import TextToImage9BInput as TextToImage9BInput
    from flux_klein_async.models import TextToImageInput as TextToImageInput
    from flux_klein_async.models import Timings as Timings
    from flux_klein_async.operations.fanout import FanOut as FanOut
    from flux_klein_async.operations.files import FileBytes as FileBytes
    from flux_klein_async.options import DEFAULT as DEFAULT
    from flux_klein_async.options import Limits as Limits
    from flux_klein_async.options import RetryPolicy as RetryPolicy
    from flux_klein_async.polling.adaptive import AdaptivePolling as AdaptivePolling
    from flux_klein_async.polling.policies import ExponentialPolling as ExponentialPolling
    from flux_klein_async.polling.policies import FixedPolling as FixedPolling
    from flux_klein_async.polling.policies import Observation as Observation
    from flux_klein_async.polling.policies import PollPolicy as PollPolicy
    from flux_klein_async.polling.policies import Progress as Progress
    from flux_klein_async.polling.policies import Queued as Queued
    from flux_klein_async.polling.policies import SavedPolicy as SavedPolicy
    from flux_klein_async.schema import InputField as InputField
    from flux_klein_async.transport.redis import RedisLimiter as RedisLimiter
    from flux_klein_async.transport.throttle import Limiter as Limiter
    from flux_klein_async.transport.throttle import SharedLimiter as SharedLimiter
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
        "journal.base": "AccountJournal Claim Entry ItemClaims ItemJournal Journal Reservation SpendingLimit",
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
    }
    _MODULES = {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names.split()}
    _PUBLIC_MODULES = {"errors", "events", "models", "options"}
    __all__ = list(_MODULES)
    __all__ += ["KLEIN_4B_TEXT_TO_IMAGE", "KLEIN_9B_TEXT_TO_IMAGE", "__version__"]
    # Not in __all__: `import *` must work without their extras.
    _MODULES |= {"PostgresJournal": f"{__name__}.journal.postgres", "RedisLimiter": f"{__name__}.transport.redis"}

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            return getattr(import_module(_MODULES[name]), name)
        if name in _PUBLIC_MODULES:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_PUBLIC_MODULES})
