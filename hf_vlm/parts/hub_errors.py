"""Say in plain words why the Hub refused something, or could not be asked, and what to do about it.

transformers and huggingface_hub raise a dozen classes of errors, whose first line often tells an address and a status.
"""

from typing import NamedTuple

from httpx2 import TransportError
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_LOG_IN = "log in with `hf auth login` or pass `token=`"


class HubFault(NamedTuple):
    """What came instead of what was asked for, to follow "got", and what to do."""

    what: str
    advice: str


def hub_fault(error: BaseException) -> HubFault | None:
    """What went wrong between here and the Hub; None if the error, and what caused it, is about something else.

    Args:
        error: as it was raised by transformers, huggingface_hub or the HTTP client below them.
    """
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)
    found = [fault for fault in map(_fault_of, causes) if fault is not None]
    if found:
        return found[0]
    if any(isinstance(cause, LocalEntryNotFoundError) for cause in causes):  # the Hub was not to be asked
        return _fault_of(OfflineModeIsEnabled())
    return None


def _fault_of(error: BaseException) -> HubFault | None:
    if isinstance(error, HFValidationError):
        return HubFault("no such folder, nor a name that the Hub could have", "Check the spelling.")
    if isinstance(error, OfflineModeIsEnabled):
        return HubFault(
            "the order to stay offline",
            "Check the spelling; to ask the Hub, unset `HF_HUB_OFFLINE` and leave out `local_files_only`, or name a folder.",
        )
    if isinstance(error, TransportError | TimeoutError | ConnectionError):
        return HubFault(
            f"no connection to {constants.ENDPOINT} ({type(error).__name__}: {error})",
            "Check the network and try again.",
        )
    return _refusal(error) if isinstance(error, HfHubHTTPError) else None


def _refusal(error: HfHubHTTPError) -> HubFault | None:
    """What an answer of the Hub's means that is an error."""
    status = error.response.status_code
    whose = "that this token may not read" if "authorization" in error.response.request.headers else "and no token"
    if isinstance(error, EntryNotFoundError):
        return None
    if status == 401 and "Invalid credentials" in f"{error.response.headers.get('X-Error-Message')} {error}":
        return HubFault(
            "a token that the Hub doesn't know, which it refuses for public repositories too",
            f"Log in again with `hf auth login`, pass another `token=`, or correct `HF_TOKEN`; see {constants.ENDPOINT}"
            "/settings/tokens.",
        )
    if isinstance(error, GatedRepoError):
        return HubFault(
            f"a gated repository {whose}",
            f"Ask for access on its page, {constants.ENDPOINT}/{error.repo_id or ''}, and {_LOG_IN}.",
        )
    if isinstance(error, RevisionNotFoundError):
        return HubFault("no such branch, tag or commit in that repository", "Correct `revision`, or leave it out.")
    if isinstance(error, RepositoryNotFoundError):
        return HubFault(
            f"no folder of that name and no such repository of the Hub, or a private one {whose}",
            f"Check the spelling; for a private one {_LOG_IN}.",
        )
    if status == 401:
        return HubFault("no token", f"To write, {_LOG_IN}.")
    if status == 403:
        return HubFault(
            f"a token that has no right to do that ({error.response.headers.get('X-Error-Message') or 'Forbidden'})",
            f"Use a name of your own, or a token of its owner's that may write: {_LOG_IN}.",
        )
    return HubFault(f"an error of {constants.ENDPOINT} ({status})", "Try again later.")
