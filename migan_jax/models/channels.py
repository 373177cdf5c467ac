"""Widths and levels shared by all networks (MI-GAN supplementary, Tables S.4, S.5)."""

LOWEST_RESOLUTION = 4


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Return the number of channels at this nominal resolution."""
    return min(channel_base // resolution, channel_max)


def levels(resolution: int) -> list[int]:
    """Return the nominal resolutions of all levels: 4, 8, ..., R."""
    if resolution < 2 * LOWEST_RESOLUTION or resolution & (resolution - 1):
        raise ValueError(
            f"resolution must be a power of two and at least 8, not {resolution}."
        )
    return [2**k for k in range(2, resolution.bit_length())]
