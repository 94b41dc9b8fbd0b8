import dataclasses
import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import spectrum

from saf_jax.composite_measures import ssnr_db
from saf_jax.config import Config, LossConfig
from saf_jax.losses import (
    Signals,
    Term,
    complex_error,
    consistency_error,
    loss_terms,
    magnitude_error,
    multi_resolution_error,
    negative_segmental_snr,
    negative_si_sdr,
    phase_error,
    time_error,
    valid_frames,
    weighted_sum,
)
from saf_jax.metrics import si_sdr_db
from saf_jax.signal_path import analyse
from saf_jax.training_step import compared_signals

pytestmark = pytest.mark.usefixtures("quick_compile")

FRAMES = np.array([6, 4], np.int32)
ESTIMATE, TARGET = spectrum(2, 6, 5, seed=1), spectrum(2, 6, 5, seed=2)
# All that need no second network.
NAMES = {field.name for field in dataclasses.fields(LossConfig)} - {"metric"}
EVERY = LossConfig(**dict.fromkeys(NAMES, 1.0))
CONFIG = dataclasses.replace(networks.least(), loss=EVERY)
SAMPLES = np.array([500, 0, 260, 470], np.int32)


def over_valid_frames(values):
    return sum(values[b, :n].astype(np.float64).sum() for b, n in enumerate(FRAMES))


def make_batch(samples=SAMPLES, length=500, seed=0):
    """Noisy, clean and, as what a network might give, a third version of each signal."""
    inside = np.arange(length) < np.asarray(samples)[:, None]
    clean, noise, rest = (
        np.stack([networks.tone_in_noise(length, seed + 100 * kind + i) for i in range(len(samples))]) * inside
        for kind in range(3)
    )
    signals = {"noisy": clean + noise[::-1] * inside, "clean": clean, "guess": 0.8 * clean + 0.3 * rest}
    return {**{name: value.astype(np.float32) for name, value in signals.items()}, "samples": np.asarray(samples)}


def signals_of(batch, config=CONFIG):
    noisy = analyse(batch["noisy"], config)
    estimate = analyse(batch["guess"], config, noisy.level).spectrum
    inside = (jnp.arange(estimate.shape[1]) < valid_frames(batch["samples"], config.stft)[:, None])[..., None]
    # Not the spectrum of any waveform, and 0 beyond the end, as the network's is.
    estimate = estimate * (1 + 0.2 * jnp.cos(jnp.arange(estimate.shape[2]) + jnp.arange(estimate.shape[1])[:, None]))
    return compared_signals(jnp.where(inside, estimate, 0), noisy, batch, config)


@jax.jit
def terms_of(batch):
    return loss_terms(signals_of(batch), CONFIG)


multi_resolution = jax.jit(functools.partial(multi_resolution_error, sample_rate_hz=16000))


def only(estimate, target, frames):
    """Signals for the losses that look at spectra alone."""
    return Signals(estimate, target, estimate, jnp.zeros((2, 1)), jnp.zeros((2, 1)), frames, frames)


def test_complex_error_sums_the_valid_frames():
    total, count = complex_error(ESTIMATE, TARGET, FRAMES)
    assert float(total) == pytest.approx(over_valid_frames(np.abs(ESTIMATE - TARGET) ** 2), rel=1e-5)
    assert float(count) == 10 * 5


def test_magnitude_error_sums_the_valid_frames():
    total, count = magnitude_error(ESTIMATE, TARGET, FRAMES)
    assert float(total) == pytest.approx(over_valid_frames((np.abs(ESTIMATE) - np.abs(TARGET)) ** 2), rel=1e-4)
    assert float(count) == 10 * 5


def test_time_error_sums_the_valid_samples():
    a, b = np.float32([[1, 2, 3], [4, 5, 6]]), np.float32([[0.5, 4, 3], [4, 9, -9]])
    assert time_error(a, b, np.array([3, 2])) == (0.5 + 2 + 0 + 0 + 4, 5)


def test_only_spectra_that_no_waveform_has_are_inconsistent():
    batch = make_batch()

    @jax.jit
    def of_clean(batch):
        noisy = analyse(batch["noisy"], CONFIG)
        return compared_signals(analyse(batch["clean"], CONFIG, noisy.level).spectrum, noisy, batch, CONFIG)

    signals = of_clean(batch)
    consistent = consistency_error(signals.estimate, signals.resynthesised, signals.frames)
    assert float(consistent.total / consistent.count) < 1e-8
    np.testing.assert_allclose(signals.estimated_samples, signals.target_samples, atol=1e-5)
    free = terms_of(batch)["consistency"]
    assert float(free.total / free.count) > 1e-3


def test_phase_error_is_the_wrapped_error_and_its_differences():
    wrap = lambda angle: np.abs(np.angle(np.exp(1j * angle)))  # noqa: E731
    total, count = phase_error(ESTIMATE, TARGET, FRAMES)
    error = (np.angle(ESTIMATE) - np.angle(TARGET))[:, :, 1:-1].astype(np.float64)
    wanted = sum(
        wrap(error[b, :n]).sum() + wrap(np.diff(error[b, :n], axis=0)).sum() + wrap(np.diff(error[b, :n], axis=1)).sum()
        for b, n in enumerate(FRAMES)
    )
    assert float(total) == pytest.approx(wanted, rel=1e-5)
    assert float(count) == 10 * 3


def test_a_turn_of_all_phases_is_no_error_of_group_delay_and_frequency():
    total, count = phase_error(TARGET * np.exp(0.5j).astype(np.complex64), TARGET, FRAMES)
    assert float(total / count) == pytest.approx(0.5, rel=1e-5)


def test_bins_whose_target_is_silent_have_no_phase():
    quiet = TARGET.copy()
    quiet[0, 2, 2] *= 1e-6
    total, count = phase_error(ESTIMATE, quiet, FRAMES)
    assert float(count) == 10 * 3 - 1
    changed = ESTIMATE.copy()
    changed[0, 2, 2] *= 1j
    assert phase_error(changed, quiet, FRAMES) == (total, count)


def test_multi_resolution_error_of_a_gain():
    """Half the amplitude: spectral convergence 1/2, log ratio log 2, whatever the resolution."""
    loud = 10 * np.random.default_rng(0).standard_normal((2, 4000)).astype(np.float32)
    total, count = multi_resolution(0.5 * loud, loud, np.array([4000, 4000]))
    assert float(count) == 8000
    assert float(total / count) == pytest.approx(0.5 + np.log(2), rel=1e-3)


def test_multi_resolution_error_against_plain_transforms():
    samples = 3000
    found, wanted = np.random.default_rng(1).standard_normal((2, samples)).astype(np.float32)
    parts = []
    for window in (256, 512, 1024):
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
        starts = range(-window // 2, samples, window // 4)
        a, b = (
            np.array([np.fft.rfft(np.pad(x, window)[window + i : 2 * window + i] * hann) for i in starts])
            for x in (found, wanted)
        )
        a, b = (np.sqrt(np.abs(x) ** 2 / (3 / 8 * window) + 1e-6) for x in (a, b))
        parts.append(np.linalg.norm(a - b) / np.linalg.norm(b) + np.mean(np.abs(np.log(a / b))))
    total, count = multi_resolution(found[None], wanted[None], np.array([samples]))
    assert float(total / count) == pytest.approx(np.mean(parts), rel=1e-4)


def test_si_sdr_is_the_metrics_and_passes_over_silent_targets():
    batch = make_batch()
    clean, guess = batch["clean"], batch["guess"]
    clean[3] = 0
    total, count = negative_si_sdr(guess, clean, SAMPLES)
    wanted = -sum(si_sdr_db(clean[b, : SAMPLES[b]], guess[b, : SAMPLES[b]]) for b in (0, 2))
    assert float(count) == 2
    assert float(total) == pytest.approx(wanted, abs=0.05)


def test_si_sdr_of_a_perfect_estimate_is_bounded():
    clean = make_batch()["clean"]
    total, count = negative_si_sdr(2 * clean, clean, SAMPLES)
    assert float(total / count) == pytest.approx(-35, abs=0.1)


def test_segmental_snr_is_the_metrics_within_its_limits():
    rng = np.random.default_rng(2)
    lengths = np.array([16000, 9000])
    clean = rng.standard_normal((2, 16000)) * (np.arange(16000) < lengths[:, None])
    # Errors in bursts, so that it shows how a frame weighs its parts; mostly far from the limits, which are soft here.
    bursts = np.repeat(10 ** (rng.uniform(-20, 5, (2, 160)) / 20), 100, axis=1)
    guess = clean + 0.4 * bursts * rng.standard_normal(clean.shape) * (np.arange(16000) < lengths[:, None])
    total, count = negative_segmental_snr(jnp.float32(guess), jnp.float32(clean), lengths, 16000)
    values = [ssnr_db(c[:n], g[:n]) for c, g, n in zip(clean, guess, lengths)]
    frames = [16000 // 120 - 4, 9000 // 120 - 4]
    assert float(count) == sum(frames)
    assert float(total / count) == pytest.approx(-np.average(values, weights=frames), abs=0.05)


@pytest.mark.parametrize(("gain", "limit_db"), [(0.0, 35.0), (1e4, -10.0)])
def test_segmental_snr_is_limited(gain, limit_db):
    clean, error = np.random.default_rng(3).standard_normal((2, 1, 4000)).astype(np.float32)
    total, count = negative_segmental_snr(clean + gain * error, clean, np.array([4000]), 16000)
    assert float(total / count) == pytest.approx(-limit_db, abs=0.05)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), lengths=st.lists(st.integers(0, 350), min_size=4, max_size=4))
def test_neither_padding_nor_spreading_changes_a_term(seed, lengths):
    batch = make_batch(np.array(lengths, np.int32), 350, seed)
    whole = terms_of(batch)
    pad = {name: np.pad(value, ((0, 0), (0, 150))) for name, value in batch.items() if name != "samples"}
    # The next two devices' slices hold the same four signals in another company.
    order = np.array([2, 0, 3, 1])
    halves = [
        terms_of({name: np.concatenate([value[order[part]], 0 * value[:2]]) for name, value in batch.items()})
        for part in (slice(0, 2), slice(2, 4))
    ]
    for name, term in whole.items():
        others = {"padded": terms_of({**pad, "samples": batch["samples"]})[name]}
        others["spread"] = jax.tree.map(lambda *parts: sum(parts), *(half[name] for half in halves))
        for how, other in others.items():
            assert float(other.count) == float(term.count), (name, how)
            assert float(other.total) == pytest.approx(float(term.total), rel=2e-4, abs=1e-4), (name, how)


def test_gradients_agree_with_finite_differences():
    """Of every term, in double precision, along a random direction of the estimate."""
    with jax.enable_x64(True):
        batch = make_batch(np.array([700, 77]), 700, seed=5)
        batch = {name: value if name == "samples" else value.astype(np.float64) for name, value in batch.items()}
        noisy, start = jax.jit(lambda: (analyse(batch["noisy"], CONFIG), signals_of(batch).estimate))()
        direction = spectrum(*start.shape, seed=3).astype(np.complex128)

        def losses(way):
            terms = loss_terms(compared_signals(start + way * direction, noisy, batch, CONFIG), CONFIG)
            return {name: term.total / term.count for name, term in terms.items()}

        values = jax.jit(losses)
        # Absolute values and wrapping have corners, but none within these steps.
        results = jax.jit(jax.jacrev(losses))(0.0), values(1e-6), values(-1e-6)
        slopes, above, below = jax.tree.map(float, results)
    assert set(slopes) == NAMES
    for name, slope in slopes.items():
        assert abs(slope) > 1e-3, name
        assert slope == pytest.approx((above[name] - below[name]) / 2e-6, rel=1e-4), name


def test_the_papers_loss_is_half_of_each():
    terms = loss_terms(only(ESTIMATE, TARGET, FRAMES), Config())
    wanted = 0.5 * over_valid_frames(np.abs(ESTIMATE - TARGET) ** 2) / 50
    wanted += 0.5 * over_valid_frames((np.abs(ESTIMATE) - np.abs(TARGET)) ** 2) / 50
    assert float(weighted_sum(terms, LossConfig())) == pytest.approx(wanted, rel=1e-4)


def test_a_term_without_weight_is_left_out():
    terms = loss_terms(only(ESTIMATE, TARGET, FRAMES), Config(loss=LossConfig(complex=0, magnitude=2)))
    assert set(terms) == {"magnitude"}
    error = float(terms["magnitude"].total) / 50
    assert float(weighted_sum(terms, LossConfig(complex=0, magnitude=2))) == pytest.approx(2 * error, rel=1e-6)


def test_what_lies_beyond_the_end_does_not_count():
    changed = TARGET.copy()
    changed[1, 4:] = 1e6
    for term in (complex_error, magnitude_error, phase_error):
        assert term(ESTIMATE, changed, FRAMES) == term(ESTIMATE, TARGET, FRAMES)


def test_a_batch_of_nothing_is_0_not_nan():
    terms = terms_of({name: 0 * value for name, value in make_batch().items()})
    assert set(terms) == NAMES
    assert float(weighted_sum(terms, EVERY)) == 0


def test_weighted_sum_divides_sums_by_counts():
    terms = {"complex": Term(jnp.float32(6), jnp.float32(3)), "magnitude": Term(jnp.float32(5), jnp.float32(1))}
    assert float(weighted_sum(terms, LossConfig(complex=1, magnitude=0.1))) == pytest.approx(2.5)


@jax.jit
def gradient_of(batch, size):
    """With respect to the estimate, of the sum of all terms; the estimate is `size` times the guess."""

    def loss(estimate):
        noisy = analyse(batch["noisy"], CONFIG)
        return weighted_sum(loss_terms(compared_signals(estimate, noisy, batch, CONFIG), CONFIG), EVERY)

    return jax.grad(loss)(signals_of(batch).estimate * size)


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e-5, 1.0])
@pytest.mark.parametrize("silent", [(), ("clean",), ("noisy", "clean")], ids=str)
def test_gradients_are_finite_and_bounded_at_silence(size, silent):
    batch = {name: value * (name not in silent) for name, value in make_batch().items()}
    gradient = np.asarray(gradient_of(batch, np.float32(size)))
    assert np.isfinite(gradient).all()
    # The mean over some thousand bins: what one bin weighs stays below what moves a whole step.
    assert np.abs(gradient).max() < 10
