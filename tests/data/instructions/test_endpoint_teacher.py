"""An endpoint's teacher gets one answer to each request, as many at a time as allowed, whatever a server of our own does."""

import asyncio
import contextlib
import gc
import itertools
import json
import ssl
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import huggingface_hub.constants
import pytest

from hf_vlm.data.instructions import endpoint_teacher
from hf_vlm.data.instructions.chat_client import ChatClient, chat_url, duration_s, key_for, wait_of
from hf_vlm.data.instructions.contexts import Context
from hf_vlm.data.instructions.endpoint_teacher import EndpointTeacher
from hf_vlm.data.instructions.teachers import KINDS, BudgetReached, TeacherRequest

KEY = "sk-secret-0123456789"
TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
CLOSE = object()  # close the connection in the middle of the body
DRIBBLE = object()  # send a byte now and then, for ever


class Server:
    """Answers as `behave` says, a function of a request's words, how often they came before, and the whole body: None for a
    completion, or (status, headers, body), `CLOSE`, `DRIBBLE`, or a number of seconds to wait before a completion."""

    def __init__(self, behave=None, models=("tiny",), latency_s=0.0):
        self.behave, self.models, self.latency_s = behave or (lambda words, before, body: None), models, latency_s
        self.came, self.bodies, self.headers = Counter(), [], []
        self.in_flight = self.most_in_flight = 0

    def __enter__(self):
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        return self

    def __exit__(self, *_):
        async def end():
            self._server.close()
            await asyncio.sleep(0.01)  # a connection that is just being made is left open if it is cancelled
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _connected(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if head[0].startswith("GET"):
                    status, extra, said = 200, {}, json.dumps({"data": [{"id": name} for name in self.models]})
                else:
                    status, extra, said = await self._answer(headers, json.loads(body))
                told = said.encode() if isinstance(said, str) else said
                length = len(told) + (0 if isinstance(status, int) else 1000)
                extra = {"content-length": length, "content-type": "application/json"} | extra
                lines = "".join(f"{name}: {value}\r\n" for name, value in extra.items())
                writer.write(f"HTTP/1.1 {status if isinstance(status, int) else 200} X\r\n{lines}\r\n".encode() + told)
                await writer.drain()
                if status is CLOSE:
                    break
                while status is DRIBBLE:
                    await asyncio.sleep(0.02)
                    writer.write(b" ")
        writer.close()

    async def _answer(self, headers, body):
        words = body["messages"][-1]["content"]
        before, self.came[words] = self.came[words], self.came[words] + 1
        self.bodies.append(body)
        self.headers.append(headers)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            does = self.behave(words, before, body)
            await asyncio.sleep(does if isinstance(does, float) else self.latency_s)
        finally:
            self.in_flight -= 1
        if does is CLOSE or does is DRIBBLE:
            return does, {}, '{"choices": ['
        if isinstance(does, tuple):
            return does
        return 200, {}, completion(f"reply to {words}")


def completion(text, finish_reason="stop", usage=(10, 5)):
    told = {
        "choices": [{"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}]
    }
    if usage is not None:
        told["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return json.dumps(told)


def fault(status, message="busy", **headers):
    told = json.dumps({"error": {"message": message}})
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, told


def request(number):
    messages = [{"role": "user", "content": f"request {number}"}]
    return TeacherRequest(
        number, KINDS[number % 3], Context(str(number), f"{number}.png"), messages, seed=1000 + number
    )


def requests(number):
    return map(request, range(number))


class Clock:
    """Time that passes only where it is slept."""

    def __init__(self):
        self.now, self.slept = 100.0, []

    async def sleep(self, seconds):
        self.slept.append(seconds)
        await asyncio.sleep(0.001)
        self.now = max(self.now, self.now + seconds)


def teacher_of(server, clock=None, **settings):
    teacher = EndpointTeacher(server.url, **({"timeout_s": 5, "api_key": "", "backoff_s": 0.001} | settings))
    if clock is not None:
        teacher._clock, teacher._sleep = lambda: clock.now, clock.sleep
    return teacher


def answered(replies, number):
    """By number; each request was answered once."""
    replies = list(replies)
    by_number = {reply.request.number: reply for reply in replies}
    assert sorted(by_number) == list(range(number)) and len(replies) == number
    return by_number


@pytest.fixture(autouse=True, scope="module")
def quick_collection():
    """What was there before these tests is not looked through at the end of each."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch, recwarn):
    """No key of this machine's is read; no thread, and no warning of a forgotten task, is left."""
    monkeypatch.delenv("HF_VLM_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    # Certificates are read anew for each client, which takes longer than most of these tests, and none is needed.
    monkeypatch.setattr("httpx2._transports.default.create_ssl_context", lambda **_: TLS)
    before = set(threading.enumerate())
    yield
    gc.collect()
    assert set(threading.enumerate()) <= before
    assert not [str(warning.message) for warning in recwarn if warning.category in (RuntimeWarning, ResourceWarning)]


def test_each_request_is_answered_once_with_its_own_reply():
    with Server() as server:
        teacher = teacher_of(server, temperature=0.5, top_p=0.9, max_tokens=64)
        for number, reply in answered(teacher.replies(requests(50)), 50).items():
            assert reply.text == f"reply to request {number}"
            assert (reply.finish_reason, reply.prompt_tokens, reply.completion_tokens) == ("stop", 10, 5)
        assert teacher.name == "tiny"  # the only one that is listed
        body = next(body for body in server.bodies if body["messages"][0]["content"] == "request 7")
        expected = {"model": "tiny", "temperature": 0.5, "top_p": 0.9, "max_tokens": 64, "seed": 1007, "stream": False}
        assert body == {**expected, "messages": [{"role": "user", "content": "request 7"}]}
    told = teacher.account.to_dict()
    assert (told["requests"], told["replies"], told["failed"], told["retries"]) == (50, 50, 0, {})
    assert (told["prompt_tokens"], told["completion_tokens"], told["cost"]) == (500, 250, None)


def test_as_many_are_in_flight_as_allowed_and_never_more():
    with Server(latency_s=0.03) as server:
        teacher = teacher_of(server, concurrency=7)
        answered(teacher.replies(requests(70)), 70)
        assert server.most_in_flight == 7
        assert 5 < teacher.account.mean_in_flight <= 7


def test_more_than_a_hundred_can_be_in_flight():
    """The Hub's own session keeps a hundred connections."""
    server = Server()
    server.behave = lambda *_: 1.0 if server.most_in_flight < 130 else None  # till all are there, or late
    with server:
        answered(teacher_of(server, concurrency=130).replies(requests(130)), 130)
        assert server.most_in_flight == 130


def test_replies_come_while_others_are_still_awaited():
    with Server(lambda words, before, body: 0.3 if words == "request 0" else None) as server:
        replies = teacher_of(server, concurrency=2).replies(requests(9))
        order = [reply.request.number for reply in replies]
    # Two times two are taken ahead; the slow one is waited for once all of the others are done.
    assert order[-1] == 0 and sorted(order) == list(range(9))


def test_slow_iterator_does_not_hold_back_replies():
    def slowly():
        for number in range(8):
            time.sleep(0.05)
            yield request(number)

    begun = time.monotonic()
    with Server() as server:
        replies = teacher_of(server, concurrency=16).replies(slowly())
        next(replies)
        taken = time.monotonic() - begun
        replies.close()
    assert taken < 0.35  # the iterator alone takes 0.4 s


def test_requests_are_taken_in_the_callers_thread_and_not_far_ahead():
    taken, threads = [], set()

    def counted():
        for number in itertools.count():
            taken.append(number)
            threads.add(threading.current_thread())
            yield request(number)

    with Server() as server:
        replies = teacher_of(server, concurrency=4).replies(counted())
        for given in range(1, 40):
            next(replies)
            assert len(taken) - given <= 8
        replies.close()
        time.sleep(0.2)  # what was sent before arrives
        came = sum(server.came.values())
        time.sleep(0.05)
        assert sum(server.came.values()) == came <= len(taken)
    assert threads == {threading.current_thread()}


@pytest.mark.parametrize("way", ["close", "throw", "forget"])
def test_stopped_early_leaves_nothing_behind(way):
    """What is in flight is cancelled, not waited for; the fixture looks for threads and warnings."""
    with Server(lambda words, before, body: None if words == "request 0" else 30.0) as server:
        replies = teacher_of(server, concurrency=8, timeout_s=60).replies(requests(100))
        assert next(replies).request.number == 0
        begun = time.monotonic()
        if way == "close":
            replies.close()
        elif way == "throw":
            with pytest.raises(KeyboardInterrupt):
                replies.throw(KeyboardInterrupt)
        else:
            del replies
            gc.collect()
        assert time.monotonic() - begun < 5
        assert not [thread for thread in threading.enumerate() if thread.name == "hf-vlm endpoint"]


def test_error_of_the_iterator_is_passed_on():
    def broken():
        yield request(0)
        raise OSError("disk full")

    with Server(latency_s=10) as server, pytest.raises(OSError, match="disk full"):
        list(teacher_of(server).replies(broken()))


def test_generators_can_run_side_by_side_and_within_a_loop():
    """Such as in a notebook, whose cells run in a loop."""

    async def cell(teacher):
        both = zip(teacher.replies(requests(20)), teacher.replies(requests(20)), strict=True)
        return [(one.request.number, other.request.number) for one, other in both]

    with Server() as server:
        pairs = asyncio.run(cell(teacher_of(server)))
    for place in (0, 1):
        assert sorted(pair[place] for pair in pairs) == list(range(20))


HTML = "<html><style>p { }</style><h1>Bad gateway</h1></html>"
MISBEHAVIOUR = {
    "408": fault(408),
    "429": fault(429),
    "500": fault(500),
    "502": (502, {"content-type": "text/html"}, HTML),
    "503": fault(503),
    "504": (504, {}, "[1, 2]"),
    "529": (529, {}, ""),
    "connection": CLOSE,
    "timeout": 30.0,
    "dribble": DRIBBLE,
    "HTML": (200, {"content-type": "text/html"}, HTML),
    "half JSON": (200, {}, completion("half")[:40]),
    "list": (200, {}, "[]"),
    "no choices": (200, {}, '{"error": {"message": "overloaded"}}'),
    "empty choices": (200, {}, '{"choices": []}'),
    "no message": (200, {}, '{"choices": [{"text": "a"}]}'),
    "not text": (200, {}, '{"choices": [{"message": {"content": [{"type": "text"}]}}]}'),
    "not UTF-8": (200, {}, b'{"choices": [{"message": {"content": "\xff"}}]}'),
    "deep": (200, {}, "[" * 100_000),
    "too large": (200, {}, completion("a" * (9 << 20))),
}


@pytest.mark.parametrize("name", MISBEHAVIOUR)
def test_passing_fault_is_tried_again_and_counted(name):
    does = MISBEHAVIOUR[name]
    with Server(lambda words, before, body: does if words == "request 3" and before < 2 else None) as server:
        teacher = teacher_of(server, timeout_s=0.2 if name in ("timeout", "dribble") else 20, max_retries=2)
        replies = answered(teacher.replies(requests(6)), 6)
        assert server.came == {f"request {number}": 3 if number == 3 else 1 for number in range(6)}
    assert [reply.text for _, reply in sorted(replies.items())] == [f"reply to request {number}" for number in range(6)]
    reason = "timeout" if name == "dribble" else name
    reason = reason if reason.isdigit() or reason in ("connection", "timeout") else "bad body"
    assert teacher.account.retries == {reason: 2}
    assert (teacher.account.requests, teacher.account.replies) == (8, 6)


def test_request_is_given_up_after_all_retries_and_tells_why():
    with Server(lambda words, before, body: fault(500, "CUDA error") if words == "request 3" else None) as server:
        teacher = teacher_of(server, max_retries=2)
        replies = answered(teacher.replies(requests(6)), 6)
        assert server.came["request 3"] == 3
    assert replies[3].error == "500: CUDA error." and replies[3].text == ""
    assert [reply.error for number, reply in replies.items() if number != 3] == [None] * 5
    assert teacher.account.failed == 1


def test_body_above_the_limit_is_not_read_to_its_end():
    """A server that sends without an end is left; told by its time."""

    def endless(words, before, body):
        return (200, {"content-length": 1 << 40}, b"a" * (9 << 20))

    with Server(endless) as server:
        reply = next(teacher_of(server, max_retries=0, timeout_s=30).replies(requests(1)))
    assert "wanted at most 8 MiB" in reply.error


@pytest.mark.parametrize("status", [400, 413, 422])
def test_request_refused_for_its_own_sake_is_not_tried_again(status):
    too_long = fault(status, "maximum context length is 2048 tokens, `max_tokens` or `max_completion_tokens` too large")
    with Server(lambda words, before, body: too_long if words in ("request 0", "request 3") else None) as server:
        teacher = teacher_of(server)
        replies = answered(teacher.replies(requests(6)), 6)
        assert set(server.came.values()) == {1}
    for number in (0, 3):
        assert replies[number].error.startswith(f"{status}: maximum context length is 2048 tokens")
    assert teacher.account.retries == {} and teacher.account.failed == 2


def test_few_requests_that_are_all_too_long_are_no_fault_of_the_endpoint():
    with Server(lambda words, before, body: fault(400, "too long")) as server:
        assert all(reply.error for reply in answered(teacher_of(server).replies(requests(5)), 5).values())


def test_many_too_long_in_a_row_are_no_fault_of_the_endpoint_once_it_answered():
    with Server(lambda words, before, body: None if words == "request 0" else fault(400, "too long")) as server:
        replies = answered(teacher_of(server, concurrency=1).replies(requests(30)), 30)
    assert sum(reply.error is not None for reply in replies.values()) == 29


def test_endpoint_that_refuses_everything_is_asked_no_further():
    with Server(lambda words, before, body: fault(400, "temperature must be 1")) as server:
        replies = teacher_of(server, concurrency=2).replies(requests(1000))
        with pytest.raises(ConnectionError, match="temperature must be 1. Change what is asked"):
            list(replies)
        assert len(server.came) < 20


@pytest.mark.parametrize("content", ["", None])
def test_empty_content_is_an_empty_reply(content):
    with Server(lambda words, before, body: (200, {}, completion(content, "length", usage=None))) as server:
        reply = next(teacher_of(server).replies(requests(1)))
    assert (reply.text, reply.finish_reason, reply.error) == ("", "length", None)
    assert (reply.prompt_tokens, reply.completion_tokens) == (None, None)


@pytest.mark.parametrize(("status", "fix"), [(401, "HF_VLM_API_KEY"), (403, "HF_VLM_API_KEY"), (402, "Pay")])
def test_wrong_key_ends_the_run_with_the_fix(status, fix):
    said = fault(status, f"Incorrect API key provided: {KEY}")
    with Server(lambda words, before, body: said) as server:
        with pytest.raises(ConnectionError, match=fix) as caught:
            list(teacher_of(server, api_key=KEY, concurrency=2).replies(requests(100)))
        assert sum(server.came.values()) <= 2
        assert server.headers[0]["authorization"] == f"bearer {KEY}"
    assert KEY not in str(caught.value) and "Incorrect API key provided: ***" in str(caught.value)


def test_work_done_before_the_key_ran_out_is_given_first():
    def behave(words, before, body):
        number = int(words.split()[1])
        return fault(401, "expired") if number == 5 else 0.2 if number in (4, 6) else None

    replies = []
    with Server(behave) as server, pytest.raises(ConnectionError, match="expired"):
        for reply in teacher_of(server, concurrency=3).replies(requests(100)):
            replies.append(reply.request.number)
    assert {0, 1, 2, 3, 4} <= set(replies) and 5 not in replies
    assert set(replies) == {int(words.split()[1]) for words in server.came} - {5}  # those in flight too


def test_wrong_model_ends_the_run_with_the_fix():
    for number in (3, 100):
        with Server(lambda words, before, body: fault(404, "The model `tinny` does not exist.")) as server:
            replies = []
            with pytest.raises(ConnectionError, match="does not exist. Correct the URL.*tinny"):
                replies.extend(teacher_of(server, model="tinny", concurrency=2).replies(requests(number)))
            assert len(server.came) < 20


def test_server_that_is_gone_ends_the_run():
    with Server() as server:
        teacher = teacher_of(server, model="tiny", max_retries=1)
    for number in (2, 100):
        with pytest.raises(ConnectionError, match="got connection: .* Start the endpoint"):
            list(teacher.replies(requests(number)))
    assert teacher.account.requests < 100


def test_redirect_is_not_followed():
    with Server() as other:
        with Server(lambda *_: (307, {"location": f"{other.url}/chat/completions?key=abc"}, "")) as server:
            with pytest.raises(ConnectionError, match="307: leads to http://127.0.0.1:\\d+/v1/chat/completions. Give"):
                list(teacher_of(server, api_key=KEY).replies(requests(1)))
        assert not other.came


WAITS = [
    ({"retry-after": "7"}, 7.0),
    ({"retry-after": "0.5"}, 0.5),
    ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
    ({"retry-after": "Wed, 21 Oct 2015 07:28:10 GMT"}, 10.0),
    ({"retry-after": "Wed, 21 Oct 2015 07:27:00 GMT"}, 0.0),
    ({"x-ratelimit-reset-requests": "1s"}, 1.0),
    (
        {"x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-requests": "1s"},
        360.0,
    ),
    ({"x-ratelimit-reset-tokens": "20ms", "x-ratelimit-reset-requests": "1h0m1.5s"}, 0.02),
    ({"retry-after": "2", "x-ratelimit-reset-tokens": "20s"}, 2.0),
    ({"retry-after": "soon"}, None),
    ({"retry-after": "nan"}, None),
    ({"retry-after": "-1"}, None),
    ({"x-ratelimit-reset-tokens": "later"}, None),
    ({}, None),
]


@pytest.mark.parametrize(("headers", "wait"), WAITS)
def test_wait_is_read_from_the_headers(headers, wait):
    assert wait_of(headers, 1445412480.0) == (None if wait is None else pytest.approx(wait))  # 2015-10-21 07:28:00


def test_limits_told_with_other_faults_are_no_wait():
    headers = {"x-ratelimit-reset-tokens": "20s"}
    assert wait_of(headers, 0.0, is_limit=False) is None
    assert wait_of(headers | {"retry-after": "3"}, 0.0, is_limit=False) == 3


def test_durations():
    told = {
        "1s": 1,
        "6m0s": 360,
        "20ms": 0.02,
        "1h2m3.5s": 3723.5,
        "1d": 86400,
        "12": 12,
        "": None,
        "1x": None,
        "s": None,
    }
    assert {text: duration_s(text) for text in told} == {
        text: None if seconds is None else pytest.approx(seconds) for text, seconds in told.items()
    }


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (429, {"retry_after": "40"}),
        (503, {"retry_after": "40"}),
        (429, {"retry_after": "DATE"}),
        (429, {"x_ratelimit_reset_tokens": "40s"}),
    ],
)
def test_rate_limit_holds_back_all_others_for_as_long_as_told(status, headers):
    clock, begun = Clock(), {}

    def behave(words, before, body):
        begun.setdefault(words, []).append(clock.now)
        if words == "request 2" and not before:
            date = format_datetime(datetime.now(UTC) + timedelta(seconds=41), usegmt=True)
            return fault(status, **{name: date if value == "DATE" else value for name, value in headers.items()})
        return None

    with Server(behave) as server:
        teacher = teacher_of(server, clock, concurrency=1)
        answered(teacher.replies(requests(6)), 6)
    assert [begun[f"request {number}"] for number in (0, 1)] == [[100.0], [100.0]]
    assert begun["request 2"][0] == 100
    later = [begun["request 2"][1], *(begun[f"request {number}"][0] for number in (3, 4, 5))]
    assert all(139 <= when for when in later)
    assert teacher.account.retries == {str(status): 1}


def test_server_that_wants_to_be_left_alone_for_hours_ends_the_run():
    with Server(lambda *_: fault(429, "quota", retry_after="7200")) as server:
        with pytest.raises(ConnectionError, match="429: quota. and a wait of 7200 s. Go on"):
            list(teacher_of(server).replies(requests(3)))


def test_backoff_doubles_to_a_minute_and_is_drawn_by_the_seed():
    def waits():
        clock = Clock()
        with Server(lambda words, before, body: fault(500) if before < 9 else None) as server:
            list(teacher_of(server, clock, max_retries=9, backoff_s=1.0).replies(requests(20)))
        return sorted(clock.slept)

    slept = waits()
    assert slept == waits()  # the order of events is left to the machine, the waits are not
    assert len(slept) == 9 * 20 and 50 < max(slept) <= 60
    # Mean of full jitter: half of 1, 2, 4, ..., 32, then of 60 thrice.
    assert sum(slept) / 20 == pytest.approx((63 + 180) / 2, rel=0.1)
    assert sum(wait < 1 for wait in slept) == pytest.approx(20 * (63 / 32 + 3 / 60), rel=0.2)


def test_fewer_are_in_flight_while_the_server_is_too_busy():
    """A server that takes 4 at a time is asked by about as many, and hardly refuses; without that, most would be refused."""
    server = Server(latency_s=0.01)
    server.behave = lambda *_: fault(429) if server.in_flight > 4 else None
    with server:
        teacher = teacher_of(server, concurrency=32, max_retries=20)
        answered(teacher.replies(requests(150)), 150)
    assert teacher.account.mean_in_flight < 20
    assert teacher.account.retries["429"] < 150


def test_as_many_as_allowed_are_in_flight_again_after_a_busy_time():
    late = []
    server = Server(latency_s=0.04)

    def behave(words, before, body):
        if int(words.split()[1]) > 80:
            late.append(server.in_flight)
        return fault(503) if words in ("request 8", "request 30") and not before else None

    server.behave = behave
    with server:
        answered(teacher_of(server, concurrency=8).replies(requests(140)), 140)
    assert max(late) == 8


@pytest.mark.parametrize(
    "said",
    ["Unrecognized request argument supplied: seed", [{"loc": ["body", "seed"], "msg": "Extra inputs", "input": 1}]],
)
def test_seed_is_left_out_where_it_is_not_taken(said):
    def behave(words, before, body):
        told = json.dumps({"error": {"message": said}} if isinstance(said, str) else {"detail": said})
        return (422, {}, told) if "seed" in body else None

    with Server(behave) as server:
        teacher = teacher_of(server, concurrency=4)
        replies = answered(teacher.replies(requests(30)), 30)
        assert sum("seed" in body for body in server.bodies) <= 4  # those in flight when the first came back
    assert not any(reply.error for reply in replies.values())
    assert teacher.account.to_dict()["left_out"] == "seed"


def test_refusal_that_repeats_a_prompt_about_seeds_is_read_as_none_of_the_parameter():
    said = [{"loc": ["body", "messages"], "msg": "too long", "input": "a seed in a pot"}]
    with Server(lambda words, before, body: (422, {}, json.dumps({"detail": said}))) as server:
        teacher = teacher_of(server)
        reply = next(teacher.replies(requests(1)))
    assert reply.error == "422: body.messages: too long." and not teacher.account.left_out


def test_newer_name_of_max_tokens_is_used_where_the_older_is_not_taken():
    said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    with Server(lambda words, before, body: fault(400, said) if "max_tokens" in body else None) as server:
        teacher = teacher_of(server, concurrency=1, max_tokens=77)
        answered(teacher.replies(requests(5)), 5)
        assert [body.get("max_completion_tokens") for body in server.bodies] == [None, *[77] * 5]


def test_cost_is_counted_and_the_budget_kept():
    with Server() as server:  # 10 and 5 tokens a reply: 10 * 1 + 5 * 4 = 30 millionths
        teacher = teacher_of(server, concurrency=1, price_per_million=(1.0, 4.0), budget=100e-6)
        numbers, replies = [], teacher.replies(requests(100))
        with pytest.raises(BudgetReached, match="100 is spent|0.0001 is spent"):
            for reply in replies:
                numbers.append(reply.request.number)
        assert numbers == [0, 1, 2, 3] and len(server.came) == 4
        assert teacher.account.cost == pytest.approx(120e-6)
        with pytest.raises(BudgetReached):  # over all calls
            list(teacher.replies(requests(1)))
        assert len(server.came) == 4


def test_budget_that_is_just_enough_is_no_error():
    with Server() as server:
        teacher = teacher_of(server, concurrency=1, price_per_million=(1.0, 4.0), budget=120e-6)
        answered(teacher.replies(requests(4)), 4)
        assert list(teacher.replies([])) == []


def test_budget_needs_prices_and_counts():
    with Server(lambda *_: (200, {}, completion("a", usage=None))) as server:
        with pytest.raises(ValueError, match="`budget` needs the prices"):
            teacher_of(server, budget=1)
        replies = teacher_of(server, concurrency=1, budget=1, price_per_million=(1, 1)).replies(requests(9))
        assert next(replies).text == "a"
        with pytest.raises(ValueError, match="`budget` needs an endpoint that counts tokens"):
            list(replies)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/", "http://localhost:8000/v1"),
        (" HTTP://localhost:8000/v1/ ", "http://localhost:8000/v1"),
        ("https://api.openai.com/v1/chat/completions", "https://api.openai.com/v1"),
        ("https://api.openai.com/v1/chat/completions/", "https://api.openai.com/v1"),
        ("https://api.openai.com/v1/models", "https://api.openai.com/v1"),
        ("https://api.groq.com/openai/v1", "https://api.groq.com/openai/v1"),
        ("https://a.b/v1beta/openai/", "https://a.b/v1beta/openai"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1"),
        ("http://192.168.0.5:8000", "http://192.168.0.5:8000/v1"),
        ("http://gpu-box:8000", "http://gpu-box:8000/v1"),
    ],
)
def test_url_is_brought_to_one_form(given, meant):
    assert chat_url(given, has_key=True) == meant


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000/v1", "must begin with http"),
        ("ftp://localhost", "must begin with http"),
        ("http://", "must begin with http"),
        ("http://a:99999999/v1", "must begin with http"),
        ("https://user:secret@host/v1", "hold no password"),
        ("https://host/v1?key=secret", "hold no password"),
        ("http://api.openai.com/v1", "must begin with https:// where a key is sent"),
        ("http://8.8.8.8/v1", "must begin with https:// where a key is sent"),
    ],
)
def test_url_that_is_none_or_unsafe_is_refused(url, message):
    with pytest.raises(ValueError, match=message) as caught:
        EndpointTeacher(url, "tiny", api_key=KEY)
    assert KEY not in str(caught.value) and "secret" not in str(caught.value).replace(KEY, "")


def test_key_is_the_environments_for_this_host_alone(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "openai")
    monkeypatch.setattr("hf_vlm.data.instructions.chat_client.get_token", lambda: "hub")
    urls = [
        "https://api.openai.com/v1",
        "http://api.openai.com",
        "https://api.openai.com.evil.io/v1",
        "http://localhost:8000",
    ]
    assert [key_for(url, None) for url in urls] == ["openai", None, None, None]
    assert [key_for(f"https://{host}/v1", None) for host in ("router.huggingface.co", "huggingface.co.evil.io")] == [
        "hub",
        None,
    ]
    monkeypatch.setenv("HF_VLM_API_KEY", "ours\n")
    assert [key_for(url, None) for url in urls] == ["ours"] * 4
    assert key_for(urls[0], "given") == "given"
    with pytest.raises(ValueError, match="printable ASCII") as caught:
        key_for(urls[0], "“secret”")
    assert "secret" not in str(caught.value)


def test_hubs_token_and_offline_mode_do_not_concern_the_endpoint(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert huggingface_hub.constants.is_offline_mode()
    with Server() as server:
        answered(teacher_of(server, api_key=None).replies(requests(3)), 3)
        assert all("authorization" not in headers for headers in server.headers)
        assert "hf_secret" not in str(server.headers)


def test_key_is_in_no_setting_or_name():
    with Server() as server:
        teacher = teacher_of(server, api_key=KEY)
    assert KEY not in repr(teacher) + repr(teacher.settings) + repr(teacher.account.to_dict()) + teacher.name
    assert "127.0.0.1" not in repr(teacher.settings)  # a run may go on at another address


def test_model_must_be_named_where_several_are_served():
    with Server(models=("one", "two")) as server:
        with pytest.raises(ValueError, match="got none. Name one of one, two"):
            teacher_of(server)
        assert teacher_of(server, model="two").settings["model"] == "two"
    with Server(models=()) as server, pytest.raises(ConnectionError, match="must list models, got none"):
        teacher_of(server)
    with pytest.raises(ConnectionError, match="/v1/models must answer, got ConnectError.*Start the endpoint"):
        teacher_of(server)


def test_half_characters_are_refused_and_told():
    odd = TeacherRequest(0, KINDS[0], Context("0", "0.png"), [{"role": "user", "content": "\ud83d"}], 0)
    with Server() as server:
        reply, *_ = teacher_of(server).replies([odd, request(1)])
    assert reply.request.number == 0 and "UnicodeEncodeError" in reply.error


@pytest.mark.parametrize(
    "setting",
    [{"concurrency": 0}, {"max_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"timeout_s": 0}, {"max_retries": -1}],
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        EndpointTeacher("http://localhost", "tiny", **setting)


def test_mistake_of_ours_reaches_the_caller_instead_of_a_silence(monkeypatch):
    async def broken(*_):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(ChatClient, "reply", broken)
    with Server() as server, pytest.raises(ZeroDivisionError, match="ours"):
        list(teacher_of(server).replies(requests(50)))
    assert endpoint_teacher._IN_A_ROW == 8
