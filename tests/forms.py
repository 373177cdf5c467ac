"""Run the forms of operations that other platforms would, on CPUs."""

import jax
import pytest
from jax import lax

from migan_jax.ops import partition


def use_accelerator_forms(monkeypatch: pytest.MonkeyPatch, name: str = "gpu") -> None:
    """Run the forms of operations that an accelerator runs, "gpu" or "tpu"."""

    def choose(*arrays, default, **forms):
        return forms.get(name, default)(*arrays)

    monkeypatch.setattr(lax, "platform_dependent", choose)


def use_tpu_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split images of any mesh into strips, and run operations, as on TPUs."""

    def on_tpus() -> bool:
        return not jax.sharding.get_abstract_mesh().empty

    monkeypatch.setattr(partition, "on_tpus", on_tpus)
    use_accelerator_forms(monkeypatch, "tpu")
