"""An engine: a process that has one model, and answers the frames that come in on standard input.

It starts no other process, opens no port and needs no token. A model that brings its process down takes no other
model, and no request of another, with it. Where it ends, its parent sees the end of the stream; where the parent ends,
it does.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from nlp_distill.errors import NlpDistillError
from nlp_distill.serving import frames

if TYPE_CHECKING:
    from nlp_distill.light.classification import LightClassifier
    from nlp_distill.light.question_answering import LightAnswerer

NICE = 10
"""The web process goes first: it must answer "too busy" at once when engines have all the cores can do."""
MOST_TOGETHER = 16
"""Requests that one thread takes from the queue at once."""

Request = tuple[int, Any, dict[str, Any]]
Answer = tuple[int, str, Any, float]
"""Number, kind (`answer`, `refused`, `failed`), what is told, seconds."""


class LightEngine:
    """Without torch: a thread a core, each with a run of its own. What waits together is asked together."""

    most_together = MOST_TOGETHER

    def __init__(self, model: LightClassifier | LightAnswerer, threads: int) -> None:
        self.model = model
        self.threads = threads

    def answer(self, requests: list[Request]) -> list[Answer]:
        """Answers to some requests; one that is refused takes no other with it."""
        begin = time.perf_counter()
        asked, answers = [], []
        for number, inputs, parameters in requests:
            try:
                asked.append((number, self.model.ask(inputs, **parameters)))
            except ValueError as error:
                answers.append((number, "refused", str(error), time.perf_counter() - begin))
        outputs = iter(self.model.graph.run([row for _, one in asked for row in one.rows]))
        for number, one in asked:
            told = self.model.answer(one, [next(outputs) for _ in one.rows])  # type: ignore[arg-type]
            answers.append((number, "answer", told, time.perf_counter() - begin))
        return answers


class PipelineEngine:
    """A transformers or Optimum pipeline; these are not made for several threads, nor for several requests at once."""

    threads = 1
    most_together = 1

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    def answer(self, requests: list[Request]) -> list[Answer]:
        """Answers to some requests, one after the other."""
        return [self._answer(*request) for request in requests]

    def _answer(self, number: int, inputs: Any, parameters: dict[str, Any]) -> Answer:
        begin = time.perf_counter()
        try:
            kind, told = "answer", self._ask(inputs, parameters)
        except BaseException as error:
            # For a question that is too long the tokenizers library raises a bare Exception, or panics.
            unfit = isinstance(error, ValueError | LookupError) or type(error) is Exception
            if not unfit and type(error).__name__ not in ("PanicException", "PipelineException"):
                raise
            kind, told = "refused", str(error)
        return number, kind, told, time.perf_counter() - begin

    def _ask(self, inputs: Any, parameters: dict[str, Any]) -> Any:
        rows = inputs if isinstance(inputs, list) else [inputs]
        # Questions and their contexts are given in columns.
        if not all(isinstance(row, dict) and "context" in row for row in rows):
            return self.pipe(inputs, **parameters)
        longest = self.pipe.tokenizer.model_max_length
        if parameters.get("max_seq_len", 0) > longest:
            raise ValueError(f"max_seq_len is above the model's {longest}")
        columns = {name: [row[name] for row in rows] for name in ("question", "context")}
        return self.pipe(**columns, **parameters)


Engine = LightEngine | PipelineEngine


def load(spec: dict[str, Any]) -> Engine:
    """The engine of a spec: `folder`, `variant`, `light`, `threads`."""
    folder, threads = Path(spec["folder"]), int(spec["threads"])
    if spec["light"]:
        from nlp_distill.light.door import load_light

        # Runs side by side keep all cores busy without waiting for each other, and the answers are those of one thread.
        return LightEngine(load_light(folder, spec["variant"]), threads)
    import torch

    from nlp_distill.prediction import task_of, variant_pipeline

    torch.set_num_threads(threads)
    return PipelineEngine(variant_pipeline(folder, task_of(folder), spec["variant"], threads))


class Desk:
    """Takes requests from the queue, lets the engine answer, writes the answers."""

    def __init__(self, engine: Engine, out: IO[bytes]) -> None:
        self.engine = engine
        self.waiting: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._out = out
        self._writing = threading.Lock()

    def work(self) -> None:
        """For ever; one thread of several."""
        while True:
            taken = [self.waiting.get()]
            # What others would take at this moment is left to them.
            share = min(self.engine.most_together, self.waiting.qsize() // self.engine.threads + 1)
            while len(taken) < share:
                try:
                    taken.append(self.waiting.get_nowait())
                except queue.Empty:
                    break
            self._finish(taken)

    def _finish(self, taken: list[Request]) -> None:
        answers: list[Answer]
        try:
            answers = self.engine.answer(taken)
            bodies = [_written(told) for _, _, told, _ in answers]
        except BaseException:
            # Panics of Rust are no Exceptions. Whatever one request has brought about, the others are asked alone.
            traceback.print_exc()
            if len(taken) > 1:
                for request in taken:
                    self._finish([request])
                return
            answers, bodies = [(taken[0][0], "failed", "", 0.0)], [b""]
        for (number, kind, _, seconds), body in zip(answers, bodies, strict=True):
            self.tell({"id": number, "kind": kind, "seconds": round(seconds, 6), "together": len(taken)}, body)

    def tell(self, head: dict[str, Any], body: bytes = b"") -> None:
        """Write a frame."""
        with self._writing:
            self._out.write(frames.pack(head, body))
            self._out.flush()


def _written(told: Any) -> bytes:
    """JSON; numbers of numpy, as some pipelines give them, are numbers."""
    text = json.dumps(told, ensure_ascii=False, separators=(",", ":"), default=lambda value: value.item())
    return text.encode("utf-8", "replace")


def serve(source: IO[bytes], out: IO[bytes], engine_of: Callable[[dict[str, Any]], Engine] = load) -> None:
    """Read the spec, load, answer until the stream ends."""
    spec = frames.read(source)
    if spec is None:
        return
    try:
        engine = engine_of(spec[0])
    except NlpDistillError as error:
        out.write(frames.pack({"kind": "unfit", "reason": str(error)}))
        out.flush()
        return
    desk = Desk(engine, out)
    for warm_up in spec[0]["warm_up"]:
        engine.answer([(0, warm_up, {})])
    if sys.platform != "win32":
        os.nice(NICE)
    for _ in range(engine.threads):
        threading.Thread(target=desk.work, daemon=True).start()
    # Ctrl-C, and what ends a service, reach the whole group; the parent ends this process once all is answered.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    desk.tell({"kind": "ready"})
    while (frame := frames.read(source)) is not None:
        head, body = frame
        asked = json.loads(body)
        desk.waiting.put((head["id"], asked["inputs"], asked["parameters"]))


def main() -> None:
    """What the process runs."""
    out = os.fdopen(os.dup(1), "wb")
    # What libraries print must not get between the frames.
    os.dup2(2, 1)
    serve(sys.stdin.buffer, out)
    # A run that goes on in a thread has nobody left to tell.
    os._exit(0)


if __name__ == "__main__":
    main()
