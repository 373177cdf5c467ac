"""Write shards on Apache Beam: one element of the pipeline is one shard.

Workers write a shard as one machine does, so its bytes are the same. They see the
source and the output, and get only the number of the shard: files are too large to
pass through a pipeline.
"""

import functools
import os
import shlex
import threading
from pathlib import Path
from typing import NamedTuple

from migan_jax.data.masks import MaskHole
from migan_jax.data.shards import ShardOptions, ShardWriter
from migan_jax.data.sources import FileSource
from migan_jax.errors import UserError
from migan_jax.files import reason


class _Job(NamedTuple):
    """What a worker needs to make the same `ShardWriter`."""

    images: str
    masks: str | None
    mask_hole: MaskHole
    output: str
    options: ShardOptions


def write_shards(writer: ShardWriter, options: str) -> None:
    """Write the missing shards, without the index.

    Args:
      writer: opened on this machine.
      options: of Beam, as on a command line.
    """
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    # Beam raises anything, and for wrong options even SystemExit.
    try:
        parsed = PipelineOptions(shlex.split(options))
        parsed.get_all_options()  # fails now instead of later
        pipeline = beam.Pipeline(options=parsed)
    except (Exception, SystemExit) as error:
        why = "as it says above" if isinstance(error, SystemExit) else reason(error)
        raise UserError(f"Beam refuses --beam-options={options!r}: {why}.") from error
    source = writer.source
    job = _Job(
        os.path.abspath(source.files.location),
        source.masks and os.path.abspath(source.masks.location),
        source.mask_hole,
        os.path.abspath(writer.output),
        writer.options,
    )
    with writer.opened():
        try:
            with pipeline:
                shards = pipeline | beam.Create(writer.missing())
                # Without this, all shards may stay on one worker.
                shards | beam.Reshuffle() | beam.Map(_write_shard, job)
        except Exception as error:
            last_line = str(error).strip().rpartition("\n")[2]  # after a traceback
            raise UserError(
                f"The Beam pipeline for {writer.output} failed ({reason(last_line)}). "
                f"Run the command again to write the missing shards."
            ) from error


def _write_shard(index: int, job: _Job) -> None:
    with _opening:  # a worker has several threads
        writer = _open_writer(job)
    writer.write_shard(index)


_opening = threading.Lock()


@functools.lru_cache(maxsize=1)  # listing the source may take minutes
def _open_writer(job: _Job) -> ShardWriter:
    source = FileSource(Path(job.images), job.masks and Path(job.masks), job.mask_hole)
    writer = ShardWriter(source, Path(job.output), job.options)
    writer.check()  # the worker sees the same folders
    return writer
