"""Small questions to a model, several at a time on the cores of a CPU.

The products of an episode on stored features are small: shared out to the cores one by one they are hardly faster than on one
core. Whole episodes are.
"""

from __future__ import annotations

import contextlib
import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import torch
from torch import nn

MOST = 8  # at a time, each of which needs memory of its own; with more cores, each has several
Question = TypeVar("Question")
Answer = TypeVar("Answer")
Model = TypeVar("Model", bound=nn.Module)


def twin(model: Model) -> Model:
    """The same weights under attributes of its own: what a forward pass leaves there is seen by no other thread."""
    own = copy.copy(model)
    own.__dict__["_modules"] = {name: part and twin(part) for name, part in model._modules.items()}
    return own


def side_by_side(
    answers: Sequence[Callable[[Question], Answer]], questions: Iterator[Question]
) -> Iterator[tuple[Question, Answer]]:
    """The questions with their answers, in their order. Each of `answers` is called by one thread at a time.

    torch still has all its threads while the first question is asked for, which is when features are encoded.
    """
    free: SimpleQueue[Callable[[Question], Answer]] = SimpleQueue()
    for answer in answers:
        free.put(answer)

    def work(question: Question) -> Answer:
        answer = free.get()
        try:
            with torch.inference_mode():
                return answer(question)
        finally:
            free.put(answer)

    asked: deque[tuple[Question, Future[Answer]]] = deque()
    with contextlib.ExitStack() as stack:
        for number, question in enumerate(questions):
            if number == 0:
                pool = stack.enter_context(workers(len(answers)))
            asked.append((question, pool.submit(work, question)))
            if len(asked) > len(answers):
                question, future = asked.popleft()
                yield question, future.result()
        for question, future in asked:
            yield question, future.result()


@contextlib.contextmanager
def workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that share the cores of torch. This one has as few meanwhile, since some libraries have one number for all."""
    threads = torch.get_num_threads()
    each = max(1, threads // count)
    torch.set_num_threads(each)
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(each,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)
