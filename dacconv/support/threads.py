"""The threads of the numeric libraries, where their number would change the results.

A sum in another order rounds to other bits. Products of matrices and the convs of a forward pass
have the same order on any number of threads; factorisations of LAPACK, the gradients of weights
and full reductions in torch have not. So the first run on one thread, and the others on
``THREADS``, on any machine and whatever ``OMP_NUM_THREADS`` says: the same input and options give
the same bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController

THREADS = 2
"""Threads of torch for gradients. Every machine has them, and small convs gain little from more."""


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """The BLAS and LAPACK of numpy and scipy on one thread; import scipy before."""
    with _libraries("scipy.linalg" in sys.modules).limit(limits=1, user_api="blas"):
        yield


@contextmanager
def fixed_torch_threads() -> Iterator[None]:
    """``THREADS`` threads of torch, if it is loaded."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _libraries(with_scipy: bool) -> ThreadpoolController:
    """The libraries that are loaded; to look for them takes milliseconds, and scipy adds one."""
    return ThreadpoolController()
