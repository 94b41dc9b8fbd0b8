"""Metrics beside the training: the right values, and a process that dies costs one pair."""

import os
import sys

import numpy as np
import pytest
from pairs import speech_like

from saf_jax import metric_pool, metrics
from saf_jax.metric_pool import MetricPool, Pair, available_metrics, pair_metrics


@pytest.fixture(scope="module")
def pool():
    pool = MetricPool(1)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    clean = [speech_like(1.2, seed).astype(np.float32) for seed in range(2)]
    return [Pair(c, (c + 0.02 * rng.standard_normal(len(c))).astype(np.float32)) for c in clean]


class DiesInAnotherProcess:
    """Unpickling it ends the process, as a fault in native code does."""

    def __reduce__(self):
        return os._exit, (7,)


class TellsAboutItsProcess:
    """Unpickled elsewhere, it is what that process has loaded, how nice it is and how many threads it may use."""

    def __reduce__(self):
        return eval, (
            "__import__('os').nice(0), 'jax' in __import__('sys').modules, __import__('os').environ['OMP_NUM_THREADS']",
        )


def test_values_are_those_of_the_metrics_in_order(pool, pairs):
    pending = pool.submit(available_metrics(), pairs)
    results = pending.result()
    for pair, values in zip(pairs, results, strict=True):
        assert values == {
            "wb_pesq": round(metrics.wb_pesq(pair.clean, pair.enhanced), 6),
            "stoi_percent": round(metrics.stoi_percent(pair.clean, pair.enhanced), 6),
            "si_sdr_db": round(metrics.si_sdr_db(pair.clean, pair.enhanced), 6),
            "ssnr_db": round(metrics.ssnr_db(pair.clean, pair.enhanced), 6),
        }
    assert results[0] != results[1]


def test_pair_that_kills_a_process_costs_itself_alone(pairs):
    pool = MetricPool(1)
    deadly = Pair(DiesInAnotherProcess(), pairs[0].enhanced)
    results = pool.submit(("si_sdr_db",), [pairs[0], deadly, pairs[1]]).result()
    after = pool.submit(("si_sdr_db",), [pairs[0]]).result()
    pool.close()
    assert [set(values) for values in results] == [{"si_sdr_db"}, set(), {"si_sdr_db"}]
    assert after == [results[0]]


def test_processes_are_nice_and_free_of_jax(pool):
    executor = pool._executor
    niceness, has_jax, threads = executor.submit(tuple, TellsAboutItsProcess()).result()
    assert niceness >= min(19, os.nice(0) + 10) and not has_jax and threads == "1"
    assert "OMP_NUM_THREADS" not in os.environ


def test_undefined_metrics_are_left_out():
    silence = np.zeros(16000, np.float32)
    for enhanced in (silence, silence * np.nan):
        assert pair_metrics(("wb_pesq", "si_sdr_db", "stoi_percent"), Pair(silence, enhanced)) == {}


def test_without_pesq_the_others_remain(monkeypatch):
    assert available_metrics() == ("wb_pesq", "stoi_percent", "si_sdr_db", "ssnr_db")
    monkeypatch.setitem(sys.modules, "pesq", None)
    monkeypatch.setattr(metric_pool.importlib.util, "find_spec", lambda name: None if name == "pesq" else object())
    assert available_metrics() == ("stoi_percent", "si_sdr_db", "ssnr_db")
