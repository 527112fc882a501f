"""One request to an endpoint of OpenAI's chat completions and what can go wrong with it: a reply, or a `ChatFault`.

A key goes to the URL's host alone: redirects are not followed, nothing is sent unencrypted over the open network with it, the
Hub's token is sent to the Hub's own router only, and no message holds a key.
"""

import asyncio
import email.utils
import ipaddress
import json
import math
import os
import re
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC
from typing import Any
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import AsyncInferenceClient, get_token

from hf_vlm.data.instructions.teachers import TeacherReply, TeacherRequest

_MAX_BODY = 8 << 20  # bytes; an answer of 100,000 tokens is below a tenth of it
_SAID = 300  # characters of a server's words that are passed on
_LISTED = 20  # models
_PASSING = {408, 409, 425, 429}  # and all of 500 and above but these:
_LASTING = {501, 505}
_EVERYONES = {401, 402}  # and 403, unless others were answered
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_LOCAL_NAME = re.compile(r"[^.]+|.+\.(local|localhost|internal|lan)")
_REDUNDANT = ("/chat/completions", "/completions", "/chat", "/models")  # ends of URLs that are pasted


class ChatFault(Exception):
    """Why there is no reply.

    Attributes:
        reason: a status, `timeout`, `connection` or `bad body`.
        status: of HTTP; None where there is none.
        is_passing: whether the same request may be answered later.
        wait_s: seconds that the server asks to wait; None where it says nothing.
    """

    def __init__(
        self,
        reason: str,
        said: str = "",
        *,
        status: int | None = None,
        passing: bool = True,
        wait_s: float | None = None,
    ) -> None:
        super().__init__(f"{reason}: {said}" if said else f"{reason}.")
        self.reason, self.status, self.is_passing, self.wait_s, self._said = reason, status, passing, wait_s, said

    @property
    def is_everyones(self) -> bool:
        """Whether no other request is answered either."""
        return self.status in _EVERYONES or (self.status is not None and 300 <= self.status < 400)

    @property
    def is_overload(self) -> bool:
        """Whether fewer requests at a time are wanted."""
        return self.status in (429, 503)

    def unknown_parameter(self, sent: frozenset[str]) -> str | None:
        """Which of the parameters `sent` the endpoint does not take and can do without, or under another name."""
        if self.status not in (400, 422):
            return None
        if "seed" in sent and re.search(r"\bseed\b", self._said):
            return "seed"
        # Not where its value is too large, which is said with both names too.
        if "max_tokens" in sent and re.search(r"(not |un)support.*\bmax_completion_tokens\b", self._said, re.I | re.S):
            return "max_tokens"
        return None

    def advice(self, model: str) -> str:
        """What to do about it."""
        if self.status in (401, 403):
            return "Set the key in HF_VLM_API_KEY."
        if self.status == 402:
            return "Pay, or ask another endpoint, then go on."
        if self.status == 404:
            return f"Correct the URL, which ends in /v1 as a rule, or the model, {model}."
        if self.status is not None and 300 <= self.status < 400:
            return "Give the URL that it leads to, if you trust it."
        if self.status is not None and not self.is_passing:
            return "Change what is asked: the model, the lengths, the sampling or the prompts."
        return "Start the endpoint, or correct the URL, then go on."


def chat_url(url: str, *, has_key: bool) -> str:
    """The URL that `/chat/completions` follows.

    Args:
        url: as a user gives it: with or without that end, a slash, or `/v1`, which a host alone is given.
        has_key: whether a key will be sent.

    Raises:
        ValueError: if it is no URL of HTTP, holds secrets, or would carry the key unencrypted to another network.
    """
    url = url.strip()
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme.lower() not in ("http", "https") or not host:
        raise ValueError(
            f"An endpoint's URL must begin with http:// or https:// and a host, got {_without_secrets(url)}. Give one such as "
            "http://localhost:8000/v1."
        )
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError(
            f"An endpoint's URL must end with its path and hold no password, as it is kept and told, got {_without_secrets(url)} "
            "and more. Set a key in HF_VLM_API_KEY."
        )
    if has_key and parts.scheme.lower() == "http" and not _is_near(host):
        raise ValueError(
            f"An endpoint's URL must begin with https:// where a key is sent, got {url}, which anyone on the way can read. Give "
            "https://, or no key."
        )
    path, before = parts.path.rstrip("/"), None
    while path != before:
        before = path
        for end in _REDUNDANT:
            path = path.removesuffix(end).rstrip("/")
    return f"{parts.scheme.lower()}://{parts.netloc}{path or '/v1'}"


def key_for(url: str, api_key: str | None) -> str | None:
    """`api_key`, or the environment's key for this URL, or None.

    Raises:
        ValueError: if it holds what a header cannot.
    """
    host = (urlsplit(url.strip()).hostname or "") if "://" in url else ""
    is_safe = url.strip().lower().startswith("https://")
    key = api_key if api_key is not None else os.environ.get("HF_VLM_API_KEY")
    if not key and is_safe and host == "api.openai.com":
        key = os.environ.get("OPENAI_API_KEY")
    if not key and is_safe and host == "router.huggingface.co":
        key = get_token()
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError(
            "A key must be printable ASCII, got other characters in it. Copy it again into HF_VLM_API_KEY, without quotes."
        )
    return key or None


def list_models(url: str, key: str | None, timeout_s: float) -> str:
    """The only model that an endpoint lists.

    Raises:
        ConnectionError: if it lists none.
        ValueError: if it lists several.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx2.Client(timeout=timeout_s, headers=headers) as client:
            response = client.get(f"{url}/models")
        if response.status_code != 200:
            raise ChatFault(
                str(response.status_code), _said_by(response, key), status=response.status_code, passing=False
            )
        names = [str(model["id"]) for model in response.json()["data"]]
    except ChatFault as fault:
        raise ConnectionError(f"{url}/models must answer, got {fault} {fault.advice('none')}") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        told = f"{type(error).__name__} {error}".strip()
        raise ConnectionError(f"{url}/models must answer, got {told}. {ChatFault('connection').advice('')}") from None
    except (ValueError, TypeError, LookupError, RecursionError):
        names = []
    if not names:
        raise ConnectionError(f"{url}/models must list models, got none. Name the model (`--model` of make-data).")
    if len(names) > 1:
        told = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
        raise ValueError(
            f"`model` must be named where an endpoint serves several, got none. Name one of {told} (`hf-vlm make-data "
            "--teacher-model`)."
        )
    return names[0]


class ChatClient(AsyncInferenceClient):
    """The Hub's client with a session of its own.

    The Hub's session follows redirects with the key, sends nothing while HF_HUB_OFFLINE is set, not even to this machine, keeps
    100 connections at most, and reads bodies of any size; and its client sends the Hub's token where no other key is given.

    Args:
        url: as `chat_url` gives it.
        key: None for none.
        timeout_s: of each step of an exchange: to connect, to be read, to read.
        num_connections: at a time.
    """

    def __init__(self, url: str, key: str | None, timeout_s: float, num_connections: int) -> None:
        headers: dict[str, Any] = {"authorization": f"Bearer {key}" if key else None, "accept-encoding": "identity"}
        # A token must be there, or the Hub's would be looked for; the header above takes its place, or takes it out.
        super().__init__(base_url=f"{url}/chat/completions", token="-", timeout=timeout_s, headers=headers)
        self._key = key
        self._session = httpx2.AsyncClient(
            timeout=timeout_s,
            limits=httpx2.Limits(max_connections=num_connections, max_keepalive_connections=num_connections),
            event_hooks={"response": [self._check]},
        )

    async def _get_async_client(self) -> httpx2.AsyncClient:
        return self._session

    async def close(self) -> None:
        """Closes the connections."""
        await super().close()
        await self._session.aclose()

    async def reply(
        self, request: TeacherRequest, model: str, parameters: Mapping[str, Any], timeout_s: float
    ) -> TeacherReply:
        """The endpoint's reply, within `timeout_s` seconds.

        Raises:
            ChatFault: if there is none.
        """
        known = {name: value for name, value in parameters.items() if name != "max_completion_tokens"}
        others = {name: value for name, value in parameters.items() if name not in known}
        try:
            async with asyncio.timeout(timeout_s):
                completion = await self.chat_completion(request.messages, model=model, extra_body=others, **known)
            return _reply_of(request, completion)
        except TimeoutError:
            raise ChatFault("timeout", f"no reply in {timeout_s:g} s.") from None
        except (httpx2.TransportError, OSError) as error:
            raise ChatFault("connection", self._told(error)) from None
        except UnicodeEncodeError as error:  # half a character
            raise ChatFault("bad request", self._told(error), passing=False) from None
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, httpx2.HTTPError) as error:
            raise ChatFault("bad body", self._told(error)) from None

    def _told(self, error: BaseException) -> str:
        return f"{_short(f'{type(error).__name__} {error}'.strip(), self._key).rstrip('.')}."

    async def _check(self, response: httpx2.Response) -> None:
        """Bounds the body, and raises ChatFault for all statuses but those of success, before the Hub's client reads them."""
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _BoundedStream(response.stream)
        status = response.status_code
        if 200 <= status < 300:
            return
        await response.aread()
        raise ChatFault(
            str(status),
            _said_by(response, self._key),
            status=status,
            passing=status in _PASSING or (status >= 500 and status not in _LASTING),
            wait_s=wait_of(response.headers, time.time(), is_limit=status == 429),
        )


class _BoundedStream(httpx2.AsyncByteStream):
    """A body of at most `_MAX_BODY` bytes."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        num_bytes = 0
        async for chunk in self._stream:
            num_bytes += len(chunk)
            if num_bytes > _MAX_BODY:
                raise ValueError(f"wanted at most {_MAX_BODY >> 20} MiB, got more")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


def _reply_of(request: TeacherRequest, completion: Any) -> TeacherReply:
    """What is wanted of a completion; the Hub's client makes any field None that is missing.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: if it is none.
    """
    if not completion.choices:
        raise ValueError(f"no choices in {json.dumps(completion, default=str)}")
    choice = completion.choices[0]
    text = choice.message.content
    if text is not None and not isinstance(text, str):
        raise ValueError(f"content of type {type(text).__name__}")
    return TeacherReply(
        request,
        text or "",
        str(choice.finish_reason or "stop"),
        _count(completion.usage, "prompt_tokens"),
        _count(completion.usage, "completion_tokens"),
    )


def _count(usage: Any, name: str) -> int | None:
    number = getattr(usage, name, None)
    return number if isinstance(number, int) and number >= 0 else None


def wait_of(headers: Mapping[str, str], now: float, *, is_limit: bool = True) -> float | None:
    """Seconds that a server asks to wait, from `now`, seconds since 1970; None where it does not say.

    `retry-after-ms`, then `Retry-After` in seconds or as a date, then, if `is_limit`, OpenAI's `x-ratelimit-reset-requests` and
    `-tokens`: the longer of those whose `x-ratelimit-remaining-...` is 0; or, as a request can want more than what remains, the
    shorter of both if none is.

    Source: RFC 9110, 10.2.3, https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3;
        https://platform.openai.com/docs/guides/rate-limits
    """
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    if (told := headers.get("retry-after")) is not None:
        if (seconds := _number(told)) is not None:
            return seconds
        try:
            date = email.utils.parsedate_to_datetime(told)
        except ValueError:
            pass
        else:
            return max((date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now, 0.0)
    if not is_limit:  # these come with every reply
        return None
    resets = {name: duration_s(headers.get(f"x-ratelimit-reset-{name}")) for name in ("requests", "tokens")}
    waits = {name: wait for name, wait in resets.items() if wait is not None}
    spent = [wait for name, wait in waits.items() if _number(headers.get(f"x-ratelimit-remaining-{name}")) == 0]
    return max(spent) if spent else min(waits.values(), default=None)


def duration_s(told: str | None) -> float | None:
    """Seconds of such as `1s`, `6m0s`, `20ms` or `12`; None of anything else."""
    if (seconds := _number(told)) is not None:
        return seconds
    parts = _DURATION.findall(told or "")
    if not parts or "".join(number + unit for number, unit in parts) != (told or "").strip():
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def _number(told: str | None) -> float | None:
    """A finite number that is not below 0, or None."""
    try:
        number = float(told or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _said_by(response: httpx2.Response, key: str | None) -> str:
    """What a server says of its refusal, in one line that ends like a sentence; where it leads, if it is a redirect."""
    if response.is_redirect:
        target = httpx2.URL(response.url).join(response.headers.get("location", ""))
        return f"leads to {_without_secrets(str(target))}."
    said: Any = response.text
    try:
        said = json.loads(said)
        if isinstance(said, dict):
            said = said.get("error") or said.get("detail") or said.get("message") or said
        if isinstance(said, dict):
            said = said.get("message") or said
        if isinstance(said, list):  # as pydantic: the input, which repeats the prompt, is left out
            said = "; ".join(
                f"{'.'.join(map(str, one['loc']))}: {one['msg']}"
                if isinstance(one, dict) and "loc" in one
                else str(one)
                for one in said
            )
    except (ValueError, TypeError, LookupError, RecursionError):
        said = re.sub(r"<style.*?</style>|<[^>]*>", " ", response.text, flags=re.S)
    return f"{_short(said if isinstance(said, str) else json.dumps(said), key).rstrip('.') or 'no words'}."


def _short(said: str, key: str | None) -> str:
    said = " ".join(said.split())
    if key:
        said = said.replace(key, "***")
    return said if len(said) <= _SAID else said[:_SAID] + "..."


def _without_secrets(url: str) -> str:
    """As far as the path, without user and password."""
    return re.sub(r"//[^/@]*@", "//", re.split(r"[?#]", url)[0]) or "nothing"


def _is_near(host: str) -> bool:
    """Whether a host is this machine or on its own network."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return _LOCAL_NAME.fullmatch(host.lower()) is not None
    return address.is_private or address.is_loopback or address.is_link_local
