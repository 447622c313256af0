"""`Batcher`: texts of many requests decoded together, by one thread that owns the LM.

Between any two steps requests join and leave. Other work on the LM (answers to thousands of questions) is done by the
same thread, a part at a time, so that neither waits for the other's end: where both are wanted, each gets half of the
time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import torch
from torch import Tensor

from personae.lm.frozen import FrozenLM
from personae.lm.generation import choose
from personae.lm.slots import Row, Rows, Start, rows_of
from personae.serving.backend import Busy, Piece, Sampling, Unavailable
from personae.serving.saying import Saying

log = logging.getLogger(__name__)

T = TypeVar("T")
_NEWCOMERS = 8  # requests that join between two steps, so that those who run need not wait for all
_UNREAD = 2  # results of a job that may lie unread before it rests
_MEMORY = 10.0  # seconds over which the pace is measured
_CLOSING = "the server is closing; try again later"
_END = object()


class Batcher:
    """Continuous batching on one LM.

    Parameters
    ----------
    lm : FrozenLM
        From now on used by the batcher's thread alone.
    starts : callable
        From requests to what the LM is to continue for each; called in the thread, with several at once where several
        came. If it raises for several, they are tried one by one, and who raises alone gets the error.
    max_rows : int
        Texts decoded together.
    max_waiting, max_jobs : int
        Texts that may wait for a place, and jobs that may be under way; beyond them there is `Busy`.

    Examples
    --------
    >>> from personae.lm.prompts import chat_prompt
    >>> from personae.lm.tiny import tiny_lm
    >>> lm = tiny_lm()
    >>> def starts(requests):
    ...     return [Start(chat_prompt(lm, [{"role": "user", "content": text}], "before")) for text in requests]
    >>> async def two():
    ...     batcher = Batcher(lm, starts)
    ...     async def reply(text):
    ...         return [piece async for piece in batcher.text(text, Sampling(max_tokens=4))][-1]
    ...     last = await asyncio.gather(reply("Roads?"), reply("Should we spend more on schools?"))
    ...     await batcher.close(grace=1)
    ...     return last
    >>> [(piece.finish, piece.completion_tokens) for piece in asyncio.run(two())]
    [('length', 4), ('length', 4)]
    """

    def __init__(
        self,
        lm: FrozenLM,
        starts: Callable[[Sequence[Any]], Sequence[Start]],
        max_rows: int = 64,
        max_waiting: int = 256,
        max_jobs: int = 16,
    ) -> None:
        self._lm, self._starts = lm, starts
        self._max_rows, self._max_waiting, self._max_jobs = max_rows, max_waiting, max_jobs
        self._rows: Rows[_Reply] = rows_of(lm)
        self._running = 0
        self._joining: list[_Reply] = []
        self._seconds = {"rows": 0.0, "jobs": 0.0}  # that each got since both are wanted
        self._changed = threading.Condition()  # guards what follows; it is never held while the LM computes
        self._waiting: deque[_Reply] = deque()
        self._jobs: deque[_Job] = deque()
        self._no_more = ""  # why nothing new is taken
        self._ends_at = float("inf")  # the end of the grace time
        self._pace = _Pace()
        self._counts = dict.fromkeys(
            ("replies", "tokens", "prompt_tokens", "jobs", "cancelled", "failed", "refused"), 0
        )
        self._thread = threading.Thread(target=self._live, name="personae-lm", daemon=True)
        self._thread.start()

    # what event loops call -------------------------------------------------------------------------------------
    async def text(self, request: Any, sampling: Sampling, one_line: bool = False) -> AsyncGenerator[Piece, None]:
        """The text that continues a request, piece by piece; see `personae.serving.backend.Backend`.

        Parameters
        ----------
        one_line : bool
            Whether the text ends with its line, as a base model's turn in a transcript does.
        """
        sampling.check()
        reply = _Reply(request, sampling, Saying(self._lm, sampling, one_line))
        async with aclosing(self._results(reply, self._waiting, self._max_waiting, self._pace.replies_take)) as pieces:
            async for piece in pieces:
                yield piece

    def work(self, parts: Iterator[T | None]) -> AsyncGenerator[T, None]:
        """What an iterator yields; it is run in the thread, a part at a time, and None is a part without a result."""
        return self._results(_Job(parts), self._jobs, self._max_jobs, self._pace.jobs_take)

    async def close(self, grace: float) -> None:
        """Refuse what is new or waits, let what runs end within ``grace`` seconds, end the rest; the thread ends."""
        with self._changed:
            self._no_more = self._no_more or _CLOSING
            self._ends_at = min(self._ends_at, time.monotonic() + grace)
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def load(self) -> dict[str, float]:
        """Numbers for monitoring: what is now, and totals since the start."""
        with self._changed:
            return {
                "alive": float(self._thread.is_alive()),
                "waiting": len(self._waiting) + len(self._joining),
                "running": self._running,
                "jobs": len(self._jobs),
                "tokens_per_second": self._pace.tokens_per_second,
                **{f"{name}_total": count for name, count in self._counts.items()},
            }

    async def _results(
        self, request: _Request, queue: deque[Any], room: int, seconds_for: Callable[[float], float]
    ) -> AsyncGenerator[Any, None]:
        """Enter a queue and yield what is delivered; whoever stops listening is forgotten."""
        request.loop = asyncio.get_running_loop()
        with self._changed:
            if self._no_more:
                raise Unavailable(self._no_more)
            if len(queue) >= room:
                self._counts["refused"] += 1
                raise Busy(seconds_for(len(queue) / 2))
            queue.append(request)
            self._changed.notify()
        try:
            while (result := await request.inbox.get()) is not None:
                if isinstance(result, BaseException):
                    raise result
                with self._changed:
                    request.unread -= 1
                    self._changed.notify()
                yield result
        finally:
            with self._changed:
                request.gone = True
                if request in queue:
                    queue.remove(request)
                self._counts["cancelled"] += not request.done
                self._changed.notify()

    # what the thread does --------------------------------------------------------------------------------------
    def _live(self) -> None:
        reason = _CLOSING
        try:
            with torch.no_grad():
                while self._wanted():
                    began, before = time.monotonic(), self._counts["tokens"]
                    self._admit()
                    self._turn()
                    if self._running:
                        self._pace.went(self._counts["tokens"] - before, time.monotonic() - began)
        except BaseException:  # whatever it is, nobody may wait for a thread that is gone
            reason = "the language model's thread has failed; restart the server"
            log.critical(reason, exc_info=True)
        with self._changed:
            self._no_more = reason
            for request in [*self._waiting, *self._joining, *self._rows.rows, *self._jobs]:
                if not request.done:
                    self._end(request, Unavailable(reason))
            self._waiting.clear()
            self._running = 0

    def _wanted(self) -> bool:
        """Wait until there is something to do; False when there never will be."""
        with self._changed:
            while True:
                for row in [row for row in self._rows.rows if row.gone]:
                    self._rows.leave(row)
                self._running = len(self._rows.rows)
                if self._no_more:
                    for request in [*self._waiting, *(job for job in self._jobs if not job.started)]:
                        self._end(request, Unavailable(self._no_more))
                    self._waiting.clear()
                    if time.monotonic() >= self._ends_at or not (self._rows.rows or self._jobs):
                        return False
                if self._rows.rows or self._waiting or any(job.unread < _UNREAD for job in self._jobs):
                    return True
                self._changed.wait(self._ends_at - time.monotonic() if self._no_more else None)

    def _admit(self) -> None:
        """Some of those who wait join; each gets its first token."""
        with self._changed:
            room = min(_NEWCOMERS, self._max_rows - len(self._rows.rows), len(self._waiting))
            self._joining = [self._waiting.popleft() for _ in range(room)]
        began = time.monotonic()
        self._join([reply for reply in self._joining if not reply.gone])
        self._joining = []
        self._running = len(self._rows.rows)
        self._seconds["rows"] += time.monotonic() - began

    def _join(self, newcomers: list[_Reply]) -> None:
        if not newcomers:
            return
        try:
            starts = self._starts([reply.request for reply in newcomers])
            for reply, start in zip(newcomers, starts, strict=True):
                reply.saying.prompt_tokens = start.n_tokens
                self._lm.check_length(start.n_tokens, reply.sampling.max_tokens)
            logits = self._lm.logits(self._rows.join(newcomers, starts)).cpu()  # (R, V)
        except Exception as error:
            for reply in newcomers:
                self._rows.leave(reply)
            if len(newcomers) == 1:
                self._end(newcomers[0], error)
            else:  # one of them is to blame, or some; the others are not
                for reply in newcomers:
                    self._join([reply])
            return
        self._choose(newcomers, logits)

    def _turn(self) -> None:
        """A step of all rows, or a part of a job: whoever had less time."""
        with self._changed:
            job = next((job for job in self._jobs if job.unread < _UNREAD), None)
            if job is not None:  # the next turn is another's
                self._jobs.remove(job)
                self._jobs.append(job)
        rows = list(self._rows.rows)
        if not (rows and job):
            self._seconds = {"rows": 0.0, "jobs": 0.0}
        began = time.monotonic()
        if rows and (job is None or self._seconds["rows"] <= self._seconds["jobs"]):
            self._step(rows)
            self._seconds["rows"] += time.monotonic() - began
        elif job is not None:
            self._part(job)
            self._seconds["jobs"] += time.monotonic() - began

    def _step(self, rows: list[_Reply]) -> None:
        try:
            logits = self._lm.logits(self._rows.step([row.token for row in rows])).cpu()  # (R, V)
        except Exception as error:  # nobody in particular is to blame
            log.exception("a step of %d texts failed", len(rows))
            for row in rows:
                self._end(row, RuntimeError(f"the language model failed: {error}"))
            return
        self._choose(rows, logits)

    def _choose(self, rows: list[_Reply], logits: Tensor) -> None:
        """Each row's next token, from logits (R, V)."""
        for row, own in zip(rows, logits, strict=True):
            try:
                piece = row.next(own)
            except Exception as error:
                self._end(row, error)
                continue
            self._counts["tokens"] += 1
            if piece.text or piece.finish:
                row.deliver(piece)
            if piece.finish:
                self._end(row)

    def _part(self, job: _Job) -> None:
        job.started = job.started or time.monotonic()
        try:
            result = next(job.parts, _END)
        except Exception as error:
            self._end(job, error)
            return
        if result is _END:
            self._pace.job_took(time.monotonic() - job.started)
            self._end(job)
        elif result is not None:
            with self._changed:
                job.unread += 1
            job.deliver(result)

    def _end(self, request: _Request, error: Exception | None = None) -> None:
        """The last that a request hears."""
        with self._changed:
            request.done = True
            if isinstance(request, _Job):
                if request in self._jobs:
                    self._jobs.remove(request)
                self._counts["jobs"] += error is None
            elif isinstance(request, _Reply):
                self._rows.leave(request)
                self._running = len(self._rows.rows)
                self._counts["replies"] += error is None
                self._counts["prompt_tokens"] += request.saying.prompt_tokens
                self._pace.replied(request.saying.n_tokens)
            self._counts["failed"] += error is not None
        request.deliver(error)


class _Request:
    """Somebody in an event loop who waits for results."""

    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.unread = 0
        self.gone = False  # nobody listens any more
        self.done = False  # nothing more is delivered

    def deliver(self, result: Any) -> None:
        """From any thread; None ends the results, an exception is raised there."""
        try:
            self.loop.call_soon_threadsafe(self.inbox.put_nowait, result)
        except RuntimeError:  # the loop was closed
            self.gone = True


class _Job(_Request):
    def __init__(self, parts: Iterator[Any]) -> None:
        super().__init__()
        self.parts = parts
        self.started = 0.0


class _Reply(_Request, Row):
    """A text in the making."""

    def __init__(self, request: Any, sampling: Sampling, saying: Saying) -> None:
        super().__init__()
        self.request, self.sampling, self.saying = request, sampling, saying
        self.token = 0  # the last one chosen, which the next step reads
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def next(self, logits: Tensor) -> Piece:
        """Choose the next token; the piece that it adds."""
        self.token = choose(logits, self.sampling.temperature, self.sampling.top_p, self._generator)
        return self.saying.add(self.token)


class _Pace:
    """How fast things went lately, to say how long they will take."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0
        self._reply_tokens = 40.0
        self._job_seconds = 1.0

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / self._seconds if self._seconds else 0.0

    def went(self, tokens: int, seconds: float) -> None:
        """So many tokens in so many seconds, all texts together."""
        fade = math.exp(-seconds / _MEMORY)
        self._tokens = fade * self._tokens + tokens
        self._seconds = fade * self._seconds + seconds

    def replied(self, tokens: int) -> None:
        """A reply had so many tokens."""
        self._reply_tokens += 0.1 * (tokens - self._reply_tokens)

    def job_took(self, seconds: float) -> None:
        """A job took so long from its first part to its last."""
        self._job_seconds += 0.3 * (seconds - self._job_seconds)

    def replies_take(self, n: float) -> float:
        """Seconds in which that many replies are made, at least one."""
        return max(1.0, n * self._reply_tokens / self.tokens_per_second) if self._tokens else 1.0

    def jobs_take(self, n: float) -> float:
        """Seconds in which that many jobs end, at least one."""
        return max(1.0, n * self._job_seconds)
