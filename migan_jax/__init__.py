"""MI-GAN in JAX: train, fine-tune, measure and ship a small inpainting network."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from migan_jax.inpainting import Model, load

__all__ = ["Model", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported on first use, so that a verb's --help does not wait for JAX.
    if name in __all__:
        from migan_jax import inpainting

        return getattr(inpainting, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
