"""A teacher behind any endpoint that speaks OpenAI's chat completions: vLLM, TGI, `transformers serve`, llama.cpp, a provider.

A request's way, with the caller's thread on the left (it alone touches the iterator of requests, which may read a database) and
an event loop in a thread of its own on the right:

    iterator -> `replies` --submit--> waiting -> in flight (`concurrency` at most) -> answered or given up --> results
                    ^                    ^                        |                                               |
                    |                    +----- backoff ----------+                                               |
                    +------------------------------ queue, then `yield` <-----------------------------------------+

No more than twice `concurrency` requests are between the iterator and the caller, so memory does not grow with their number.

Source: OpenAI's chat completions, https://platform.openai.com/docs/api-reference/chat; retries with full jitter as in
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/; additive increase, multiplicative decrease as in
    Chiu & Jain 1989, https://doi.org/10.1016/0169-7552(89)90019-6, with growth faster than one a round.
"""

import asyncio
import contextlib
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hf_vlm.data.instructions.chat_client import ChatClient, ChatFault, chat_url, key_for, list_models
from hf_vlm.data.instructions.teachers import BudgetReached, TeacherReply, TeacherRequest

_LONGEST_BACKOFF_S = 60.0
_LONGEST_WAIT_S = (
    3600.0  # that a server may ask for; a run that goes on tomorrow is better than one that sleeps till then
)
_IN_A_ROW = 8  # requests without an answer after which nobody will get one
_GROW_EVERY = 2  # answers after which one more request may be in flight


@dataclass
class EndpointAccount:
    """What an endpoint was asked and what it took, over all calls of `replies`.

    Attributes:
        requests: sent, those that were sent again included.
        replies: of these, with an answer.
        failed: requests given up.
        retries: reason (a status, `timeout`, `connection`, `bad body`) -> how many were sent again.
        prompt_tokens, completion_tokens: as the endpoint counted them.
        cost: of these tokens, in the unit of the prices; None without prices.
        seconds: in which `replies` was at work.
        request_seconds: in flight, of all requests together.
        left_out: parameters that the endpoint does not take.
    """

    requests: int = 0
    replies: int = 0
    failed: int = 0
    retries: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    seconds: float = 0.0
    request_seconds: float = 0.0
    left_out: list[str] = field(default_factory=list)

    @property
    def replies_per_second(self) -> float:
        """Answers in a second, 0 before the first call has ended."""
        return self.replies / self.seconds if self.seconds else 0.0

    @property
    def mean_in_flight(self) -> float:
        """How many requests were in flight at a time, 0 before the first call has ended."""
        return self.request_seconds / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-like, rounded for people."""
        return {
            "requests": self.requests,
            "replies": self.replies,
            "failed": self.failed,
            "retries": dict(self.retries),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cost": None if self.cost is None else round(self.cost, 6),
            "seconds": round(self.seconds, 1),
            "replies_per_second": round(self.replies_per_second, 2),
            "mean_in_flight": round(self.mean_in_flight, 2),
            "left_out": ", ".join(self.left_out) or None,
        }


class EndpointTeacher:
    """Asks an endpoint, `concurrency` requests at a time, and gives its replies as they come.

    A request that meets a busy server, a broken line, silence or a body that is no completion is sent again, later each time; one
    that is refused for its own sake, such as for its length, is not. Where the server tells how long to wait, nobody is sent
    before; where it is too busy (429, 503), half as many are in flight from then on, and slowly more again.

    Args:
        url: what precedes `/chat/completions`, such as `http://localhost:8000/v1`; a host alone is given `/v1`.
        model: its name there; None for the only one that it lists.
        api_key: None for the environment's HF_VLM_API_KEY, or OPENAI_API_KEY if the host is api.openai.com. It is told to nobody
            but the endpoint.
        concurrency: how many requests may be in flight.
        max_tokens: longest answer; a longer one is cut, and says so.
        temperature: of sampling; 0 takes the likeliest token each time.
        top_p: of sampling, share in (0, 1] of the probability that is drawn from.
        timeout_s: seconds within which a reply must be there, whole.
        max_retries: how often one request is sent again.
        price_per_million: of a million tokens of prompts, and of answers; None leaves cost uncounted.
        budget: cost in the unit of the prices after which no more is asked, over all calls of `replies`. What is in flight then
            is still answered, and paid.
        backoff_s: longest wait before a request is sent again for the first time; twice that the second time, and so on up to a
            minute. The wait itself is drawn by the request's seed.

    Raises:
        ValueError: if `url` is no such URL, would send a key unencrypted, or a number is out of its range, or there are several
            models and none is named.
        ConnectionError: if the models cannot be listed.
    """

    commit_every, reads_prompts = 1, True

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        concurrency: int = 16,
        max_tokens: int = 512,
        temperature: float = 0.7,
        top_p: float = 1.0,
        timeout_s: float = 120.0,
        max_retries: int = 6,
        price_per_million: tuple[float, float] | None = None,
        budget: float | None = None,
        backoff_s: float = 1.0,
    ) -> None:
        for name, value, is_right, wanted in (
            ("concurrency", concurrency, concurrency >= 1, "1 or more"),
            ("max_tokens", max_tokens, max_tokens >= 1, "1 or more"),
            ("temperature", temperature, temperature >= 0, "0 or more"),
            ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1"),
            ("timeout_s", timeout_s, timeout_s > 0, "above 0"),
            ("max_retries", max_retries, max_retries >= 0, "0 or more"),
            ("backoff_s", backoff_s, backoff_s >= 0, "0 or more"),
            ("budget", budget, budget is None or budget > 0, "above 0"),
        ):
            if not is_right:
                raise ValueError(f"`{name}` must be {wanted}, got {value}. Correct it.")
        if budget is not None and price_per_million is None:
            raise ValueError(
                "`budget` needs the prices of tokens, got none. Give `price_per_million`, or no budget (`--price` of make-data)."
            )
        self._key = key_for(url, api_key)
        self._url = chat_url(url, has_key=self._key is not None)
        if model is None:
            model = list_models(self._url, self._key, min(timeout_s, 30.0))
        self.name = model
        self.settings: dict[str, Any] = {
            "model": model,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
        }
        self.account = EndpointAccount(cost=None if price_per_million is None else 0.0)
        self._concurrency, self._timeout_s, self._max_retries = concurrency, timeout_s, max_retries
        self._price, self._budget, self._backoff_s = price_per_million, budget, backoff_s
        self._spent_before = 0.0
        # A loop's own clock and sleep; tests put others here.
        self._clock: Callable[[], float] = time.monotonic
        self._sleep: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep

    def count_before(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count tokens of an earlier process towards the budget."""
        if self._price is not None:
            self._spent_before = (prompt_tokens * self._price[0] + completion_tokens * self._price[1]) / 1e6

    def replies(self, requests: Iterable[TeacherRequest]) -> Iterator[TeacherReply]:
        """As `Teacher.replies`, in the order in which they come; at most twice `concurrency` requests are taken ahead.

        Raises:
            ConnectionError: if the key, the URL or the model is wrong, nobody answers, or the server wants to be left alone for
                more than an hour.
            BudgetReached: if requests are left that the budget does not allow.
            ValueError: if there is a budget and the endpoint does not count tokens.
        """
        iterator, run = iter(requests), _Run(self)
        try:
            num_out, is_exhausted = 0, False
            while num_out or not is_exhausted:
                if not is_exhausted and num_out < 2 * self._concurrency:
                    request = next(iterator, None)
                    if request is None:
                        is_exhausted = True
                    else:
                        run.submit(request)
                        num_out += 1
                    if run.results.empty():
                        continue
                result = run.results.get()
                if isinstance(result, BaseException):
                    if isinstance(result, BudgetReached) and not num_out and next(iterator, None) is None:
                        return
                    raise result
                num_out -= 1
                yield result
            if (error := run.nobody_answers()) is not None:
                raise error
        finally:
            run.close()


@dataclass
class _Try:
    """A request, how often it was sent again, and which parameters it was last sent with."""

    request: TeacherRequest
    num_retries: int = 0
    sent: frozenset[str] = frozenset()


class _Run:
    """One call of `replies`: who may be in flight. All but `submit`, `results` and `close` belongs to the loop's thread."""

    def __init__(self, teacher: EndpointTeacher) -> None:
        self._teacher, self._account = teacher, teacher.account
        self.results: queue.SimpleQueue[TeacherReply | BaseException] = queue.SimpleQueue()
        self._waiting: deque[_Try] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_flight, self._allowed, self._opens_at = 0, float(teacher._concurrency), 0.0
        self._num_halved = 0
        self._is_opening, self._has_ended = False, False
        self._end: BaseException | None = None  # why nothing more is sent
        self._num_answered, self._num_given_up, self._num_in_a_row = 0, 0, 0
        self._out_of_reach: list[
            ConnectionError
        ] = []  # one for each given up because nobody is there; `_IN_A_ROW` at most
        self._begun = self._changed = teacher._clock()
        self._client = ChatClient(teacher._url, teacher._key, teacher._timeout_s, teacher._concurrency)
        self._loop, self._is_closed = asyncio.new_event_loop(), asyncio.Event()
        # A daemon, so that a generator that is never closed does not hold up the end of the process.
        self._thread = threading.Thread(target=self._work, name="hf-vlm endpoint", daemon=True)
        self._thread.start()

    def submit(self, request: TeacherRequest) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and `results` holds why
            self._loop.call_soon_threadsafe(self._take, request)

    def close(self) -> None:
        """Cancels what is in flight and ends the thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._is_closed.set)
        self._thread.join()
        self._account.seconds += self._teacher._clock() - self._begun

    def nobody_answers(self) -> ConnectionError | None:
        """Why no request was answered, if nobody was there for any of them."""
        everyone = not self._num_answered and len(self._out_of_reach) == self._num_given_up
        return self._out_of_reach[0] if everyone and self._out_of_reach else None

    def _work(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            self.results.put(error)

    async def _serve(self) -> None:
        async with self._client:
            await self._is_closed.wait()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._end_by_mistake)

    def _end_by_mistake(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.results.put(error)

    def _take(self, request: TeacherRequest) -> None:
        self._waiting.append(_Try(request))
        self._heed_budget()
        self._pump()

    def _pump(self) -> None:
        """Sends whatever may be sent; tells the end, once the last one in flight is back."""
        if self._is_closed.is_set():
            return
        while self._end is None and self._waiting and self._in_flight < int(self._allowed):
            if (wait := self._opens_at - self._teacher._clock()) > 0:
                if not self._is_opening:
                    self._is_opening = True
                    self._spawn(self._open_after(wait))
                break
            self._count_in_flight(1)
            self._spawn(self._ask(self._waiting.popleft()))
        if self._end is not None and not self._in_flight and not self._has_ended:
            self._has_ended = True
            self.results.put(self._end)

    async def _open_after(self, wait: float) -> None:
        await self._teacher._sleep(wait)
        self._is_opening = False
        self._pump()

    async def _again_after(self, wait: float, one: _Try) -> None:
        await self._teacher._sleep(wait)
        self._waiting.appendleft(one)
        self._pump()

    def _count_in_flight(self, more: int) -> None:
        now = self._teacher._clock()
        self._account.request_seconds += self._in_flight * (now - self._changed)
        self._changed = now
        self._in_flight += more

    async def _ask(self, one: _Try) -> None:
        halved_before = self._num_halved
        parameters = self._parameters(one.request)
        one.sent = frozenset(parameters)
        self._account.requests += 1
        try:
            found: ChatFault | TeacherReply = await self._client.reply(
                one.request, self._teacher.name, parameters, self._teacher._timeout_s
            )
        except ChatFault as fault:
            found = fault
        finally:
            self._count_in_flight(-1)
        if isinstance(found, TeacherReply):
            self._answered(found)
        else:
            if found.is_overload and halved_before == self._num_halved:  # those sent together are too many but once
                self._num_halved += 1
                self._allowed = max(self._allowed / 2, 1.0)
            self._not_answered(one, found)
        self._pump()

    def _parameters(self, request: TeacherRequest) -> dict[str, Any]:
        settings, left_out = self._teacher.settings, self._account.left_out
        parameters = {
            "max_completion_tokens" if "max_tokens" in left_out else "max_tokens": settings["max_tokens"],
            "temperature": settings["temperature"],
        }
        if settings["top_p"] < 1:
            parameters["top_p"] = settings["top_p"]
        if "seed" not in left_out:
            parameters["seed"] = request.seed
        return parameters

    def _answered(self, reply: TeacherReply) -> None:
        account, price = self._account, self._teacher._price
        account.replies += 1
        account.prompt_tokens += reply.prompt_tokens or 0
        account.completion_tokens += reply.completion_tokens or 0
        if price is not None and account.cost is not None:
            account.cost += ((reply.prompt_tokens or 0) * price[0] + (reply.completion_tokens or 0) * price[1]) / 1e6
        self._num_answered, self._num_in_a_row = self._num_answered + 1, 0
        self._allowed = min(self._allowed + 1 / _GROW_EVERY, float(self._teacher._concurrency))
        self.results.put(reply)
        if self._teacher._budget is not None and (reply.prompt_tokens is None or reply.completion_tokens is None):
            self._stop(
                ValueError(
                    f"`budget` needs an endpoint that counts tokens, got a reply without `usage` from {self._teacher._url}. "
                    "Leave the budget out, or ask another endpoint."
                )
            )
        self._heed_budget()

    def _not_answered(self, one: _Try, fault: ChatFault) -> None:
        if (named := fault.unknown_parameter(one.sent)) is not None:
            if named not in self._account.left_out:
                self._account.left_out.append(named)
            self._count_retry(f"{named} not taken")
            self._waiting.appendleft(one)
        elif fault.is_everyones or (fault.status == 403 and not self._num_answered):
            self._stop(self._refusal(fault))
        elif fault.wait_s is not None and fault.wait_s > _LONGEST_WAIT_S:
            self._stop(
                ConnectionError(
                    f"{self._teacher._url} must answer within the hour, got {fault} and a wait of {fault.wait_s:.0f} s. Go on "
                    "when it is over."
                )
            )
        elif fault.is_passing and one.num_retries < self._teacher._max_retries:
            self._retry(one, fault)
        else:
            self._give_up(one, fault)

    def _retry(self, one: _Try, fault: ChatFault) -> None:
        if self._end is not None:
            return  # asked again when the run goes on
        # Seeded by the request, so that a run meets the same waits each time; a string, as a tuple's hash differs.
        draw = random.Random(f"{one.request.seed} {one.num_retries}").random()
        wait = draw * min(self._teacher._backoff_s * 2**one.num_retries, _LONGEST_BACKOFF_S)
        if fault.wait_s is not None:
            self._opens_at = max(self._opens_at, self._teacher._clock() + fault.wait_s)
            wait = max(wait, fault.wait_s)
        self._count_retry(fault.reason)
        one.num_retries += 1
        self._spawn(self._again_after(wait, one))

    def _count_retry(self, reason: str) -> None:
        self._account.retries[reason] = self._account.retries.get(reason, 0) + 1

    def _give_up(self, one: _Try, fault: ChatFault) -> None:
        self._account.failed += 1
        self.results.put(TeacherReply(one.request, error=str(fault), finish_reason="error"))
        self._num_given_up += 1
        if not self._num_answered and (fault.status == 404 or fault.reason == "connection"):
            self._out_of_reach.append(self._refusal(fault))
        # Prompts too long for the model can follow one another: refusals tell nothing of others, once some were answered.
        if fault.is_passing or not self._num_answered:
            self._num_in_a_row += 1
            if self._num_in_a_row >= _IN_A_ROW:
                self._stop(self._refusal(fault))

    def _refusal(self, fault: ChatFault) -> ConnectionError:
        return ConnectionError(f"{self._teacher._url} must answer, got {fault} {fault.advice(self._teacher.name)}")

    def _heed_budget(self) -> None:
        budget, cost = self._teacher._budget, self._account.cost
        cost = None if cost is None else cost + self._teacher._spent_before
        if budget is not None and cost is not None and cost >= budget:
            self._stop(
                BudgetReached(
                    f"Requests left must cost nothing, as the budget of {budget:g} is spent, got {cost:.4g} for "
                    f"{self._account.replies} replies. Go on with a higher budget."
                )
            )

    def _stop(self, error: BaseException) -> None:
        """Sends nothing more; those in flight are still heard."""
        if self._end is None:
            self._end = error
            self._waiting.clear()
