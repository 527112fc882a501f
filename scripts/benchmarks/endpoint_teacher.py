"""How near an endpoint's teacher comes to as many replies as the endpoint could give.

    python scripts/benchmarks/endpoint_teacher.py [--latency-ms 200] [--jitter 0.3] [--fail 0] [--seconds 5]

The endpoint is a server on this machine, in a process of its own, that answers any number of requests at once, each after the
latency, drawn evenly from 1 - JITTER to 1 + JITTER times its mean; `--fail 0.02` makes 1 % of its replies a 429 and 1 % a 500, at
once. The ideal is concurrency / latency. Beside it, in the same run and with the same number of requests: `AsyncOpenAI` of
openai and a semaphore, if it is installed, all its requests given to it at once.
"""

import argparse
import asyncio
import importlib.util
import json
import multiprocessing
import random
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

from hf_vlm.data.instructions.contexts import Context
from hf_vlm.data.instructions.endpoint_teacher import EndpointTeacher
from hf_vlm.data.instructions.teachers import TeacherRequest

PROMPT = "Write a conversation about the picture. " * 40  # about 1,600 characters, as a real one
ANSWER = "Question:\nWhat is on the table?\n===\nAnswer:\nA cup and a plate.\n===\n" * 5
RETRIES = 6


def serve(pipe: Connection, latency_s: float, jitter: float, fail: float) -> None:
    """The endpoint; its port is sent through `pipe`."""
    draw = random.Random(0)
    usage = {"prompt_tokens": 300, "completion_tokens": 100, "total_tokens": 400}
    message = {"role": "assistant", "content": ANSWER}
    told = {"id": "1", "object": "chat.completion", "created": 0, "model": "bench", "usage": usage}
    told |= {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
    body = json.dumps(told).encode()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.partition(b":")[2]))
                status = 200
                if draw.random() < fail:
                    status = draw.choice((429, 500))
                else:
                    await asyncio.sleep(latency_s * (1 + jitter * draw.uniform(-1, 1)))
                said = body if status == 200 else b'{"error": {"message": "busy"}}'
                lines = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(said)}\r\n\r\n"
                writer.write(lines.encode() + said)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=1024)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def requests(number: int) -> Iterator[TeacherRequest]:
    for place in range(number):
        messages = [{"role": "user", "content": PROMPT}]
        yield TeacherRequest(place, "conversation", Context(str(place), None), messages, place)


def by_teacher(url: str, number: int, concurrency: int) -> tuple[float, int, str]:
    """Seconds, replies, and what else is to be told."""
    teacher = EndpointTeacher(url, "bench", concurrency=concurrency, max_retries=RETRIES)
    begun = time.perf_counter()
    answered = sum(reply.error is None for reply in teacher.replies(requests(number)))
    seconds = time.perf_counter() - begun
    retries = ", ".join(f"{reason} {count}" for reason, count in sorted(teacher.account.retries.items()))
    return seconds, answered, f"{teacher.account.mean_in_flight:.1f} | {retries or '-'}"


def by_openai(url: str, number: int, concurrency: int) -> tuple[float, int, str]:
    """As `by_teacher`."""
    import openai

    in_flight_s = 0.0

    async def run() -> tuple[float, int]:
        gate = asyncio.Semaphore(concurrency)
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=RETRIES) as client:

            async def ask(request: TeacherRequest) -> bool:
                nonlocal in_flight_s
                async with gate:
                    sent = time.perf_counter()
                    try:
                        reply = await client.chat.completions.create(
                            messages=request.messages, model="bench", max_tokens=512, temperature=0.7, seed=request.seed
                        )
                    except openai.APIError:
                        return False
                    finally:
                        in_flight_s += time.perf_counter() - sent  # its waits before a retry included
                return bool(reply.choices[0].message.content)

            begun = time.perf_counter()
            answered = sum(await asyncio.gather(*(ask(request) for request in requests(number))))
            return time.perf_counter() - begun, answered

    seconds, answered = asyncio.run(run())
    return seconds, answered, f"{in_flight_s / seconds:.1f} | "


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-ms", type=float, default=200)
    parser.add_argument("--jitter", type=float, default=0.3, help="share of the latency, default 0.3")
    parser.add_argument("--fail", type=float, default=0.0, help="share of replies that are a 429 or a 500, default 0")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=5, help="that each would take ideally, default 5")
    options = parser.parse_args()
    latency_s = options.latency_ms / 1000
    ours, theirs = multiprocessing.Pipe()
    start = multiprocessing.get_context("spawn").Process
    server = start(target=serve, args=(theirs, latency_s, options.jitter, options.fail), daemon=True)
    server.start()
    clients = {"hf_vlm": by_teacher}
    if importlib.util.find_spec("openai") is not None:
        import openai

        clients[f"openai {openai.__version__}"] = by_openai
    else:
        print("openai: skipped, as it is not installed")
    try:
        url = f"http://127.0.0.1:{ours.recv()}/v1"
        print(
            f"{options.latency_ms:g} ms, jitter {options.jitter:g}, {100 * options.fail:g} % failing, "
            f"{options.seconds:g} s each\n"
        )
        print(
            "| client | concurrency | replies | replies/s | of the ideal | mean in flight | retries |\n"
            + "|---" * 7
            + "|"
        )
        for concurrency in options.concurrency:
            ideal = concurrency / latency_s
            number = max(round(options.seconds * ideal), 1)
            for name, client in clients.items():
                seconds, answered, others = client(url, number, concurrency)
                rate = answered / seconds
                print(
                    f"| {name} | {concurrency} | {answered} of {number} | {rate:.1f} | {100 * rate / ideal:.0f} % | {others} |",
                    flush=True,
                )
    finally:
        server.kill()
        server.join()


if __name__ == "__main__":
    main()
