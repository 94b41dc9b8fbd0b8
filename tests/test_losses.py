import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import spectrum

from saf_jax.config import LossConfig
from saf_jax.losses import Term, complex_error, loss_terms, magnitude_error, weighted_sum

FRAMES = np.array([6, 4], np.int32)
ESTIMATE, TARGET = spectrum(2, 6, 5, seed=1), spectrum(2, 6, 5, seed=2)


def over_valid_frames(values):
    return sum(values[b, :n].astype(np.float64).sum() for b, n in enumerate(FRAMES))


def test_complex_error_sums_the_valid_frames():
    total, count = complex_error(ESTIMATE, TARGET, FRAMES)
    assert float(total) == pytest.approx(over_valid_frames(np.abs(ESTIMATE - TARGET) ** 2), rel=1e-5)
    assert float(count) == 10 * 5


def test_magnitude_error_sums_the_valid_frames():
    total, count = magnitude_error(ESTIMATE, TARGET, FRAMES)
    assert float(total) == pytest.approx(over_valid_frames((np.abs(ESTIMATE) - np.abs(TARGET)) ** 2), rel=1e-4)
    assert float(count) == 10 * 5


def test_the_papers_loss_is_half_of_each():
    terms = loss_terms(ESTIMATE, TARGET, FRAMES, LossConfig())
    wanted = 0.5 * over_valid_frames(np.abs(ESTIMATE - TARGET) ** 2) / 50
    wanted += 0.5 * over_valid_frames((np.abs(ESTIMATE) - np.abs(TARGET)) ** 2) / 50
    assert float(weighted_sum(terms, LossConfig())) == pytest.approx(wanted, rel=1e-4)


def test_a_term_without_weight_is_left_out():
    terms = loss_terms(ESTIMATE, TARGET, FRAMES, LossConfig(complex=0, magnitude=2))
    assert set(terms) == {"magnitude"}
    error = float(terms["magnitude"].total) / 50
    assert float(weighted_sum(terms, LossConfig(complex=0, magnitude=2))) == pytest.approx(2 * error, rel=1e-6)


def test_what_lies_beyond_the_end_does_not_count():
    changed = TARGET.copy()
    changed[1, 4:] = 1e6
    for term in (complex_error, magnitude_error):
        assert term(ESTIMATE, changed, FRAMES) == term(ESTIMATE, TARGET, FRAMES)


def test_a_batch_of_nothing_is_0_not_nan():
    terms = loss_terms(ESTIMATE, TARGET, np.zeros(2, np.int32), LossConfig())
    assert float(weighted_sum(terms, LossConfig())) == 0


def test_weighted_sum_divides_sums_by_counts():
    terms = {"complex": Term(jnp.float32(6), jnp.float32(3)), "magnitude": Term(jnp.float32(5), jnp.float32(1))}
    assert float(weighted_sum(terms, LossConfig(complex=1, magnitude=0.1))) == pytest.approx(2.5)


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e-5])
def test_gradients_are_finite_at_silence(size):
    def loss(estimate, target):
        return weighted_sum(loss_terms(estimate, target, FRAMES, LossConfig()), LossConfig())

    for gradient in jax.grad(loss, argnums=(0, 1))(ESTIMATE * np.float32(size), TARGET * np.float32(size)):
        assert np.isfinite(gradient).all()
    for gradient in jax.grad(loss, argnums=(0, 1))(ESTIMATE * np.float32(size), TARGET):
        assert np.isfinite(gradient).all()
