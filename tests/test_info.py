import json
import re

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from saf_jax.cli import main
from saf_jax.config import STFTConfig, load_config
from saf_jax.info import count_parameters, describe
from saf_jax.model.cost import count_costs
from saf_jax.model.net import SAFNet
from saf_jax.pretrained import save_weights
from saf_jax.signal_path import analyse, synthesise


def test_text_of_the_papers_config(capsys):
    assert main(["info", "--config", "paper"]) == 0
    out = capsys.readouterr().out
    parameters = count_costs(load_config("paper"))[0]
    assert f"parameters           {parameters:,}\n" in out
    assert "20 ms window, 10 ms hop, 161 bins, compression 0.5, 16000 Hz" in out
    # 134 frames on either side, two windows that overlap by half: (268 + 1) * 10 ms + 20 ms less one sample.
    assert "receptive field      2709.9 ms (134 frames before, 134 after)" in out
    assert "algorithmic latency  1360.0 ms (not causal)" in out


def test_json_with_overrides(capsys):
    assert main(["info", "--config", "paper", "--set", "model.causal=true", "--set", "model.layers=2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    config = load_config("paper", ["model.causal=true", "model.layers=2"])
    assert facts == describe(config)
    assert facts["parameters"] == count_costs(config)[0]
    assert facts["gmac_per_second"] == pytest.approx(count_costs(config, frames=100)[1] / 1e9, abs=1e-4)
    assert facts["context_frames_after"] == 0
    assert facts["algorithmic_latency_ms"] == 20


def test_a_transformer_sees_the_whole_file(capsys):
    assert main(["info", "--config", "transformer"]) == 0
    out = capsys.readouterr().out
    assert "receptive field      whole file\n" in out and "algorithmic latency  whole file (not causal)\n" in out
    assert re.search(r"cost +5\.\d+ GMAC per second of audio in 1 s, 9\.\d+ in 10 s \(grows with the length\)\n", out)
    assert main(["info", "--config", "transformer", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # infinity is no JSON
    assert facts["receptive_field_ms"] is facts["context_frames_after"] is facts["algorithmic_latency_ms"] is None


def test_weights_are_described_by_their_own_config(tmp_path, capsys):
    config = networks.least()
    save_weights(tmp_path / "w.safetensors", config, networks.net_variables(config))
    assert main(["info", "--weights", str(tmp_path / "w.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == describe(config)
    assert main(["info", "--weights", str(tmp_path / "w.safetensors"), "--set", "model.layers=2"]) == 2
    assert "--set goes with --config" in capsys.readouterr().err


def test_count_parameters_counts_trained_ones_only():
    config = networks.config(norm="batch")
    variables = networks.net_variables(config)
    assert "batch_stats" in variables
    assert count_parameters(variables) == count_parameters(variables["params"]) == count_costs(config)[0]


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("causal", [False, True])
def test_receptive_field_and_latency_are_what_gradients_show(causal):
    config = networks.least(causal=causal, stft=STFTConfig(sample_rate_hz=1600, window_samples=32, hop_samples=8))
    facts, length, middle = describe(config), 400, 200
    samples, variables = networks.tone_in_noise(length)[None], networks.net_variables(config)

    @jax.jit
    def influence(n):
        def output(samples):
            spectrum, level = analyse(samples, config, jnp.ones((1, 1, 1)))
            return synthesise(SAFNet(config.model).apply(variables, spectrum), level, config, length)[0, n]

        return jnp.abs(jax.grad(output)(samples))[0]

    seen = [np.flatnonzero(influence(middle + shift)) - middle - shift for shift in range(config.stft.hop_samples)]
    assert max(s[-1] - s[0] + 1 for s in seen) == pytest.approx(facts["receptive_field_ms"] * 1.6)
    # ahead + 1 samples after sample n began, all that it needs is there; the window's first sample, which is 0, is not.
    assert max(s[-1] for s in seen) + 2 == pytest.approx(facts["algorithmic_latency_ms"] * 1.6)
