import dataclasses
import json
import sys

import jax
import networks
import numpy as np
import pytest
from networks import tone_in_noise

from saf_jax import audio, export, streaming
from saf_jax.cli import main
from saf_jax.config import STFTConfig, config_to_dict
from saf_jax.enhancement import enhance_padded
from saf_jax.errors import UserError
from saf_jax.level import sample_level
from saf_jax.pretrained import load_weights, save_weights
from saf_jax.transforms import istft, stft

# Every operation that an exporter must know; quick to compile.
CONFIG = networks.config(causal=True, dense_dilations=(1,), tcn_dilations=(1,), attention_kernel=3)
HOP = CONFIG.stft.hop_samples

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def variables():
    return networks.net_variables(CONFIG)


@pytest.fixture(scope="module")
def weights(tmp_path_factory, variables):
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_weights(path, CONFIG, variables)
    return path


def spectra(batch, frames, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, frames, CONFIG.stft.bins, 2)).astype(np.float32)


def run(*arguments):
    return main(["export", *map(str, arguments)])


def test_stablehlo_of_the_network_at_any_batch_and_length(tmp_path, weights, variables):
    path = tmp_path / "net.stablehlo"
    assert run("--weights", weights, "--format", "stablehlo", "-o", path) == 0
    network, ours = export.load_stablehlo(path), jax.jit(export.network_function(CONFIG, variables))
    for shape in ((1, 9), (2, 5)):
        np.testing.assert_allclose(network(spectra(*shape)), ours(spectra(*shape)), atol=1e-5)
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    assert exported.platforms == export.PLATFORMS
    # The implementation is chosen where it runs.
    assert "stablehlo.convolution" in exported.mlir_module() and "stablehlo.case" in exported.mlir_module()


def test_the_networks_function_is_what_enhances(variables):
    samples = tone_in_noise(500)[None]
    config = networks.config(dense_dilations=(1,), tcn_dilations=(1,), attention_kernel=3)
    level = float(sample_level(samples[0], config.stft))
    noisy = np.asarray(stft(samples / level, config.stft))
    out = export.network_function(config, variables)(np.stack([noisy.real, noisy.imag], -1))
    enhanced = level * istft(out[..., 0] + 1j * out[..., 1], config.stft, 500)
    wanted = enhance_padded(config, variables, samples, np.array([500]))
    np.testing.assert_allclose(enhanced, wanted, atol=1e-5)


def wanted_stream(variables, hops):
    """The hops of `advance`: [n, 1, hop_samples]."""
    state, out = streaming.start(CONFIG, 1), []
    for hop in hops:
        state, enhanced = streaming.advance(CONFIG, variables, state, hop)
        out.append(np.asarray(enhanced))
    return np.stack(out)


def test_stablehlo_of_the_step(tmp_path, weights, variables):
    path = tmp_path / "step.stablehlo"
    assert run("--weights", weights, "--format", "stablehlo", "--stream", "-o", path) == 0
    step, state, got = export.load_stablehlo(path), export.step_function(CONFIG, variables)[1], []
    hops = tone_in_noise(12 * HOP).reshape(-1, 1, HOP)
    for hop in hops:
        enhanced, state = step(hop, state)
        got.append(enhanced)
    np.testing.assert_allclose(np.stack(got), wanted_stream(variables, hops), atol=1e-5)


@pytest.fixture
def session():
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("jax2onnx", reason="the extra onnx is not installed")
    return lambda path: onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.filterwarnings("ignore")
def test_onnx_of_the_network_at_any_batch_and_length(tmp_path, weights, variables, session):
    path = tmp_path / "net.onnx"
    assert run("--weights", weights, "--format", "onnx", "-o", path) == 0
    network, ours = session(path), jax.jit(export.network_function(CONFIG, variables))
    for shape in ((1, 9), (2, 5)):
        (got,) = network.run(["enhanced"], {"spectrum": spectra(*shape)})
        np.testing.assert_allclose(got, ours(spectra(*shape)), atol=1e-4)
    notes = network.get_modelmeta().custom_metadata_map
    assert json.loads(notes["config"]) == config_to_dict(CONFIG)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["stablehlo", "onnx"])
def test_a_transformer_at_any_batch_and_length(tmp_path, session, kind):
    config, path = networks.least(layer_kind="transformer", outputs="both"), tmp_path / "net"
    variables = networks.net_variables(config)
    if kind == "stablehlo":
        export.save_stablehlo(path, config, variables)
        network = export.load_stablehlo(path)
    else:
        export.save_onnx(path, config, variables)
        network = lambda spectrum: session(path).run(["enhanced"], {"spectrum": spectrum})[0]  # noqa: E731
    ours = jax.jit(export.network_function(config, variables))
    for shape in ((1, 9), (2, 5)):
        np.testing.assert_allclose(network(spectra(*shape)), ours(spectra(*shape)), atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_onnx_of_the_step(tmp_path, weights, variables, session):
    path = tmp_path / "step.onnx"
    assert run("--weights", weights, "--format", "onnx", "--stream", "-o", path) == 0
    step = session(path)
    types = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(bool)": bool}
    state = {i.name: np.zeros(i.shape, types[i.type]) for i in step.get_inputs() if i.name != "samples"}
    first = json.loads(step.get_modelmeta().custom_metadata_map["start"])
    state |= {name: np.array(value, state[name].dtype) for name, value in first.items()}
    hops, got = tone_in_noise(12 * HOP).reshape(-1, 1, HOP), []
    for hop in hops:
        enhanced, *new = step.run(None, {"samples": hop, **state})
        state = dict(zip(state, new))
        got.append(enhanced)
    np.testing.assert_allclose(np.stack(got), wanted_stream(variables, hops), atol=1e-4)


# At the rate of real recordings.
REAL = dataclasses.replace(CONFIG, stft=STFTConfig())


@pytest.fixture(scope="module")
def real_case(audio_root):
    """1.5 s of a real voice in real noise at 5 dB, float32 [N] at unit level, and variables for it."""
    rate = REAL.stft.sample_rate_hz
    voice, noise = (
        audio.read_mono(audio.list_audio(audio_root / "dev" / kind)[0], rate)[rate : rate * 5 // 2]
        for kind in ("clean", "noise")
    )
    noisy = voice + noise * np.sqrt(np.mean(voice**2) / np.mean(noise**2) / 10**0.5)
    return noisy / float(sample_level(noisy, REAL.stft)), networks.net_variables(REAL)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["stablehlo", "onnx"])
def test_the_network_on_real_audio(tmp_path, real_case, session, kind):
    samples, variables = real_case
    noisy = np.asarray(stft(samples[None], REAL.stft))
    spectrum = np.stack([noisy.real, noisy.imag], -1)
    ours = jax.jit(export.network_function(REAL, variables))(spectrum)
    if kind == "stablehlo":
        export.save_stablehlo(tmp_path / "net", REAL, variables)
        got = np.asarray(export.load_stablehlo(tmp_path / "net")(spectrum))
    else:
        export.save_onnx(tmp_path / "net", REAL, variables)
        (got,) = session(tmp_path / "net").run(["enhanced"], {"spectrum": spectrum})
    signals = [istft(out[..., 0] + 1j * out[..., 1], REAL.stft, len(samples)) for out in (got, np.asarray(ours))]
    assert np.sqrt(np.mean(np.square(signals[1]))) > 0.01
    np.testing.assert_allclose(*signals, atol=1e-4)
    np.testing.assert_allclose(got, ours, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["stablehlo", "onnx"])
def test_the_step_on_real_audio(tmp_path, real_case, session, kind):
    samples, variables = real_case
    hops = samples[: len(samples) // REAL.stft.hop_samples * REAL.stft.hop_samples]
    hops = hops.reshape(-1, 1, REAL.stft.hop_samples)
    function, state = export.step_function(REAL, variables)
    if kind == "stablehlo":
        export.save_stablehlo(tmp_path / "step", REAL, variables, stream=True)
        step = export.load_stablehlo(tmp_path / "step")
    else:
        export.save_onnx(tmp_path / "step", REAL, variables, stream=True)
        model = session(tmp_path / "step")

        def step(hop, state):
            enhanced, *new = model.run(None, {"samples": hop, **state})
            return enhanced, dict(zip(state, new))

    ours, theirs, got, wanted = jax.jit(function), state, [], []
    for hop in hops:
        enhanced, state = ours(hop, state)
        wanted.append(enhanced)
        enhanced, theirs = step(hop, theirs)
        got.append(enhanced)
    assert np.sqrt(np.mean(np.square(wanted))) > 0.01
    np.testing.assert_allclose(np.stack(got), np.stack(wanted), atol=1e-4)


def test_safetensors_with_config_and_card(tmp_path, weights, variables):
    path = tmp_path / "again.safetensors"
    assert run("--weights", weights, "--format", "safetensors", "-o", path) == 0
    config, loaded = load_weights(path)
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        assert "latency 20 ms" in file.metadata()["model_card"]


def test_a_mean_of_weights(tmp_path, weights, variables):
    moved, path = tmp_path / "moved.safetensors", tmp_path / "mean.safetensors"
    save_weights(moved, CONFIG, jax.tree.map(lambda leaf: leaf + 1, variables))
    named = ("--weights", moved, "--average-with", weights, weights, weights)
    assert run(*named, "--format", "safetensors", "-o", path) == 0
    mean = load_weights(path)[1]
    jax.tree.map(lambda got, leaf: np.testing.assert_allclose(got, leaf + 0.25, rtol=1e-6, atol=1e-6), mean, variables)


def test_a_stablehlo_file_that_is_not_there_or_cannot_be_read_here_is_not_called_damaged(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"cannot read .*none\.hlo: "):
        export.load_stablehlo(tmp_path / "none.hlo")
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(UserError, match="StableHLO needs a package"):
        export.load_stablehlo(tmp_path / "none.hlo")


def test_what_cannot_be_exported_is_one_line(tmp_path, capsys, monkeypatch, weights):
    config = networks.least()
    save_weights(tmp_path / "ahead.safetensors", config, networks.net_variables(config))
    out = tmp_path / "out"

    def error(*arguments):
        assert run(*arguments, "-o", out) == 2
        assert not out.exists()
        return capsys.readouterr().err

    ahead = ("--weights", tmp_path / "ahead.safetensors", "--stream", "--format")
    assert "looks ahead" in error(*ahead, "stablehlo")
    assert "looks ahead" in error(*ahead, "onnx")
    config = networks.least(layer_kind="transformer")
    save_weights(tmp_path / "whole.safetensors", config, networks.net_variables(config))
    whole = error("--weights", tmp_path / "whole.safetensors", "--stream", "--format", "stablehlo")
    assert "take a causal one" in whole and whole.count("\n") == 1
    assert "transformer" in export.model_card(config) and "latency of the whole signal" in export.model_card(config)
    assert "--stream: goes with" in error(*ahead, "safetensors")
    mixed = error("--weights", weights, "--average-with", tmp_path / "ahead.safetensors", "--format", "safetensors")
    assert "ahead.safetensors: is another network than" in mixed and mixed.count("\n") == 1
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    assert "pip install 'saf-jax[onnx]'" in error("--weights", weights, "--format", "onnx")
    assert run("--weights", weights, "--format", "safetensors", "-o", weights) == 2
    assert "use --overwrite" in capsys.readouterr().err
    (tmp_path / "words").write_text("no export")
    with pytest.raises(UserError, match="is no StableHLO export or is damaged"):
        export.load_stablehlo(tmp_path / "words")
