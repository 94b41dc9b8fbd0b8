"""What kind of noise a recording holds, judged from its energy over time."""

import numpy as np

_FRAME_SECONDS = 0.01
_PIECE_FRAMES = 20
_LOUD_PART = 0.05
_IMPULSIVE_SHARE = 0.4
_STATIONARY_DB = 3.0


def noise_kind(noise: np.ndarray, sample_rate_hz: int) -> str | None:
    """Calls a noise "stationary", "non-stationary" or "impulsive".

    Impulsive: the loudest 5 % of its 10 ms frames hold at least 40 % of its energy. Stationary: its level over pieces
    of 0.2 s has a standard deviation below 3 dB. On recordings with known labels, rain, running water, helicopters and
    most rooms come out stationary, crowing and crying non-stationary, ticking, barking and sneezing impulsive.

    Args:
      noise: float [N].
      sample_rate_hz: rate of `noise`.

    Returns:
      The kind; None for silence and for less than a second.
    """
    frame = round(_FRAME_SECONDS * sample_rate_hz)
    count = len(noise) // (frame * _PIECE_FRAMES) * _PIECE_FRAMES
    energy = np.square(np.asarray(noise[: count * frame], np.float64)).reshape(count, frame).sum(axis=1)
    if count * _FRAME_SECONDS < 1.0 - _FRAME_SECONDS or not energy.any():
        return None
    loudest = np.sort(energy)[-max(1, round(_LOUD_PART * count)) :]
    if loudest.sum() >= _IMPULSIVE_SHARE * energy.sum():
        return "impulsive"
    pieces = energy.reshape(-1, _PIECE_FRAMES).sum(axis=1)
    level_db = 10.0 * np.log10(np.maximum(pieces, 1e-9 * pieces.max()))
    return "stationary" if level_db.std() < _STATIONARY_DB else "non-stationary"
