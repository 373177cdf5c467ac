"""The compiled steps of a recipe's stages, to be timed without a run."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class CompiledStep(NamedTuple):
    """A stage's step, or its lazy turns, on a blank batch."""

    run: Callable[[], Any]  # waits for the result
    temporary_bytes: int


def compile_steps(
    recipe: str, settings: Sequence[str], stages: Sequence[str] = ()
) -> dict[tuple[str, int], CompiledStep]:
    """Compile the steps of a recipe, or only those of some stages.

    Returns them by stage and interval: 1 is the step, others are lazy turns.
    """
    import jax
    import numpy as np

    from migan_jax.config import load_config
    from migan_jax.families import family_named
    from migan_jax.training.programs import build_system, initial_state, make_timeline
    from migan_jax.training.step import make_step

    config = load_config(recipe, list(settings), tiny=False)
    frozen = family_named(config.system).load_frozen(config)
    system = build_system(config, frozen)
    state = jax.jit(lambda: initial_state(config, system))()
    variables = {name: network.variables for name, network in frozen.items()}
    shape = config.batch_size, config.resolution, config.resolution
    batch = {"image": np.zeros((*shape, 3), np.uint8)}
    if config.data.draw_masks_on == "host":
        batch["mask"] = np.zeros((*shape, 1), np.uint8)
    inputs = jax.device_put((state, variables, batch, jax.random.key(0)))
    found = {}
    for span in make_timeline(config, system).spans:
        if stages and span.stage.name not in stages:
            continue
        for every in (1, *span.stage.lazy):
            step = make_step(
                system,
                span,
                ema_halflife_kimg=config.optimizer.ema_halflife_kimg,
                every=every,
            )
            program = jax.jit(step).lower(*inputs).compile()
            found[span.stage.name, every] = CompiledStep(
                lambda run=program: jax.block_until_ready(run(*inputs)),
                program.memory_analysis().temp_size_in_bytes,
            )
    return found
