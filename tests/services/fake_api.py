"""A server on 127.0.0.1 that speaks the chat-completions and embeddings API and fails as it is told, where tests would need a network."""

import json
import threading
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ilr_jax.services.endpoint import Endpoint, Form, Invalid, Limits

MOST = 5000  # requests, then it answers no more
FAST = Limits(timeout=5.0, attempts=4, workers=4, first_wait=0.01)
KEY = "sk-canary-0123456789"
ECHO = Form(  # the answer to a question is what the reply says, and "?" is none
    "chat/completions",
    lambda items: {"messages": [{"role": "user", "content": items[0]}], "max_tokens": 1},
    lambda reply, n: [text if (text := reply["choices"][0]["message"]["content"]) != "?" else Invalid("a question mark")],
)


class Fault:
    """A reply that is none: a status, headers, a body as bytes, sent in `pieces` with `pause` seconds before each, or cut off."""

    def __init__(self, status: int = 200, body: Any = b"", pause: float = 0.0, pieces: int = 1, cut: bool = False, **headers: str):
        self.status, self.pause, self.pieces, self.cut = status, pause, pieces, cut
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


def error(status: int, message: str = "no", code: str | None = None, **headers: str) -> Fault:
    """An error as the API reports it."""
    return Fault(status, {"error": {"message": message, "code": code, "type": None, "param": None}}, **headers)


def chat(text: str, top: dict[str, float] | None = None, tokens: int = 50) -> Fault:
    """A chat completion with this text and these alternatives (token -> log-probability) to its first token; None: no log-probabilities."""
    entries = [{"token": token, "logprob": value, "bytes": None} for token, value in (top or {}).items()]
    logs = None if top is None else {"content": [{**entries[0], "top_logprobs": entries}] if entries else []}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": logs, "finish_reason": "stop"}
    return Fault(body={"id": "x", "object": "chat.completion", "choices": [choice], "usage": {"total_tokens": tokens}})


def echo(path: str, body: dict) -> Fault:
    """A reply that says the question in capitals."""
    return chat(body["messages"][0]["content"].upper())


def embeddings(vectors: list[list[float]]) -> Fault:
    """Embeddings, the last one first: their index counts, not their place."""
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    return Fault(body={"object": "list", "data": data[::-1], "usage": {"total_tokens": 5}})


class FakeAPI:
    """`reply(path, body)` makes each reply; the first requests get `faults` instead, one each. `asked` holds what came: (path, body)."""

    def __init__(self, reply: Callable[[str, dict], Fault], faults: list[Fault] | None = None):
        self.reply, self.faults = reply, list(faults or [])
        self.asked: list[tuple[str, dict]] = []
        self.authorized: list[str] = []
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def _handler(api) -> type[BaseHTTPRequestHandler]:  # noqa: N805 (the handler has a self of its own)
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with api.lock:
                    api.asked.append((self.path, body))
                    api.authorized.append(self.headers.get("authorization", ""))
                    fault = api.faults.pop(0) if api.faults else None
                    over = len(api.asked) > MOST
                self.send(error(404) if over else fault or api.reply(self.path, body))

            def send(self, fault: Fault) -> None:
                self.send_response(fault.status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(fault.body)))
                for name, value in fault.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                size = -(-len(fault.body) // fault.pieces) or 1
                try:
                    for i in range(0, len(fault.body) // 2 if fault.cut else len(fault.body), size):
                        threading.Event().wait(fault.pause)
                        self.wfile.write(fault.body[i : i + size])
                        self.wfile.flush()
                except OSError:
                    pass  # the client gave up, as it should
                self.close_connection = fault.cut

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@contextmanager
def serving(reply: Callable[[str, dict], Fault], faults: list[Fault] | None = None):
    """A FakeAPI that runs inside the block."""
    api = FakeAPI(reply, faults)
    thread = threading.Thread(target=api.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        api.server.shutdown()
        api.server.server_close()
        thread.join()


@contextmanager
def opened(url: str, cache, limits: Limits = FAST, key: str = KEY, model: str = "m"):
    """An endpoint at `url` whose connections are closed at the end of the block."""
    endpoint = Endpoint(url, model, key, limits, cache)
    try:
        yield endpoint
    finally:
        endpoint.transport._client.close()
