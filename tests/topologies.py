"""Compile for a TPU topology without a TPU."""

import math
import re
from collections.abc import Iterator

import numpy as np
import pytest
from jax.experimental.topologies import get_topology_desc


def tpu_devices(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Return four v5e devices to compile for; skip the test without libtpu."""
    pytest.importorskip("libtpu")
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        monkeypatch.setenv(name, value)
    return np.array(get_topology_desc("v5e:2x2", "tpu").devices)


def all_reduces(program: str) -> Iterator[tuple[str, int]]:
    """Yield (dtype, elements) of every all-reduce in a program."""
    for line in program.splitlines():
        if found := re.search(r"= (.*?) all-reduce(?:-start)?\(", line):
            for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", found.group(1)):
                yield dtype, math.prod(int(size) for size in shape.split(",") if size)
