"""Each example as a person starts it."""

import asyncio
import contextlib
import http.client
import io
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import networks
import numpy as np
import pytest
import soundfile
from networks import tone_in_noise

import saf_jax
from saf_jax import audio, export
from saf_jax.enhancement import Enhancer
from saf_jax.errors import UserError
from saf_jax.pretrained import save_weights

EXAMPLES = Path(__file__).parent.parent / "examples"
CONFIG = networks.least(causal=True)


@pytest.fixture
def folder(tmp_path):
    save_weights(tmp_path / "w.safetensors", CONFIG, networks.net_variables(CONFIG))
    for path in (tmp_path / "a.wav", tmp_path / "in" / "a.wav"):
        audio.write(path, audio.Audio(tone_in_noise(1003), 1600, subtype="FLOAT"))
    (tmp_path / "out").mkdir()
    return tmp_path


def start(name, folder, *arguments):
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, EXAMPLES / name, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, check=True, text=True, capture_output=True).stdout


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("live_stream.py", ("a.wav", "out/a.wav")),
        ("service_threads.py", ("out", "a.wav")),
        ("batch_of_files.py", ("in", "out")),
        ("numpy_array.py", ("a.wav", "out/a.wav")),
    ],
    ids=["live_stream", "service_threads", "batch_of_files", "numpy_array"],
)
def test_file_to_file(folder, name, arguments):
    start(name, folder, "w.safetensors", *arguments)
    wanted = Enhancer(CONFIG, networks.net_variables(CONFIG))(tone_in_noise(1003), 1600)
    np.testing.assert_allclose(audio.read(folder / "out" / "a.wav").samples[:, 0], wanted, atol=1e-4)


def test_own_jit(folder):
    assert "energy before" in start("own_jit.py", folder, "w.safetensors")


@pytest.mark.filterwarnings("ignore")
def test_onnx_with_numpy_alone(tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("jax2onnx", reason="the extra onnx is not installed")
    config = networks.least()
    variables = networks.net_variables(config)
    export.save_onnx(tmp_path / "net.onnx", config, variables)
    # Speech-like, with a pause of digital silence.
    samples = np.concatenate([tone_in_noise(1003), np.zeros(400, np.float32), tone_in_noise(811, 1)])
    soundfile.write(tmp_path / "a.wav", samples, 1600, subtype="FLOAT")
    start("onnx_numpy.py", tmp_path, "net.onnx", "a.wav", "b.wav")
    wanted = Enhancer(config, variables)(samples, 1600)
    np.testing.assert_allclose(audio.read(tmp_path / "b.wav").samples[:, 0], wanted, atol=1e-5)
    text = (EXAMPLES / "onnx_numpy.py").read_text()
    assert len(text.splitlines()) <= 40
    assert set(re.findall(r"^(?:import|from) (\w+)", text, re.M)) == {
        "json",
        "sys",
        "numpy",
        "onnxruntime",
        "soundfile",
    }


def recorded(samples, container="WAV", subtype="FLOAT", rate=1600):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


@contextlib.contextmanager
def service(folder):
    """The service's port."""
    pytest.importorskip("uvicorn", reason="the extra service is not installed")
    command = [sys.executable, EXAMPLES / "http_service.py", "w.safetensors", "0"]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stderr.readline, "")
            yield next(int(found[1]) for line in lines if (found := re.search(r"running on http://.*:(\d+)", line)))
        finally:
            process.terminate()


def ask(port, body, content_type="audio/wav", method="POST", path="/enhance"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, {"Content-Type": content_type})
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def begin(port, length):
    """A connection that has announced a body and not sent it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest("POST", "/enhance")
    connection.putheader("Content-Length", str(length))
    connection.endheaders(b"R")
    return connection


def test_http_service(folder):
    samples = tone_in_noise(1003)
    wanted = Enhancer(CONFIG, networks.net_variables(CONFIG))(samples, 1600)
    with service(folder) as port:
        assert ask(port, None, method="GET", path="/health") == (200, b"ok")
        status, wav = ask(port, recorded(samples))
        got, rate = soundfile.read(io.BytesIO(wav))
        assert (status, rate) == (200, 1600)
        np.testing.assert_allclose(got, wanted, atol=1e-4)
        status, wav = ask(port, recorded(samples, "FLAC", "PCM_24"), "audio/flac")
        np.testing.assert_allclose(soundfile.read(io.BytesIO(wav))[0], wanted, atol=1e-4)

        mp3 = io.BytesIO()
        soundfile.write(mp3, tone_in_noise(16000), 16000, format="MP3")
        status, wav = ask(port, mp3.getvalue(), "audio/mpeg")
        assert (status, soundfile.info(io.BytesIO(wav)).format) == (200, "WAV")

        def refused(wanted_status, words, *arguments, **named):
            status, line = ask(port, *arguments, **named)
            assert status == wanted_status
            assert words in line.decode() and len(line.decode().splitlines()) == 1
            assert str(folder) not in line.decode() and "/tmp" not in line.decode()

        refused(400, "body: cannot be read as audio", b"no audio at all")
        refused(400, "body: the file is empty", b"")
        refused(400, "body: truncated", recorded(samples)[:-500])
        refused(415, "send wav or flac", b"{}", "application/json")
        refused(413, "too long: at most", recorded(np.zeros(28_800_001, np.int16), "FLAC", "PCM_16"), "audio/flac")
        # A few bytes that say that they are hours.
        refused(400, "a rate of 10 Hz: send at least 1000 Hz", recorded(np.zeros(9000), rate=10))
        refused(413, "too long: at most", recorded(np.zeros(2_000_000, np.int16), "FLAC", "PCM_16", 1000), "audio/flac")
        refused(405, "Method Not Allowed", None, method="GET")
        large = begin(port, 10**9)
        assert large.getresponse().status == 413
        waiting = [begin(port, 1000) for _ in range(10)]
        # Connections are taken about in their order.
        assert any(ask(port, recorded(samples))[0] == 503 for _ in range(10))
        refused(503, "too busy", recorded(samples))
        for connection in (large, *waiting):
            connection.close()
        assert ask(port, None, method="GET", path="/health")[0] == 200


def test_http_service_keeps_its_own_faults_to_itself(capsys):
    pytest.importorskip("uvicorn", reason="the extra service is not installed")
    from starlette.exceptions import HTTPException

    names = runpy.run_path(str(EXAMPLES / "http_service.py"))

    def full(enhancer, jobs, treatment, progress):
        raise UserError(f"cannot write {jobs[0].target}: no space left")

    names["enhanced"].__globals__["enhance_files"] = full
    with pytest.raises(HTTPException) as caught:
        names["enhanced"](None, recorded(tone_in_noise(100)), deadline=float("inf"))
    assert caught.value.status_code == 500 and "/" not in caught.value.detail
    assert "out.wav: no space left" in capsys.readouterr().err


async def disconnected():
    return {"type": "http.disconnect"}


def test_http_service_does_not_wait_for_ever_for_a_body():
    pytest.importorskip("uvicorn", reason="the extra service is not installed")
    from starlette.exceptions import HTTPException
    from starlette.requests import Request

    names = runpy.run_path(str(EXAMPLES / "http_service.py"))
    names["read_body"].__globals__["BODY_SECONDS"] = 0.01
    request = Request({"type": "http", "method": "POST", "headers": []}, receive=lambda: asyncio.sleep(60))
    with pytest.raises(HTTPException, match="did not come within") as caught:
        asyncio.run(names["read_body"](request))
    assert caught.value.status_code == 408
    gone = Request({"type": "http", "method": "POST", "headers": []}, receive=disconnected)
    with pytest.raises(HTTPException, match="broke off") as caught:
        asyncio.run(names["read_body"](gone))
    assert caught.value.status_code == 400
    with pytest.raises(HTTPException, match="took too long") as caught:
        names["enhanced"](None, b"", deadline=0.0)
    assert caught.value.status_code == 503


@pytest.mark.parametrize("name", ["batch_of_files.py", "service_threads.py"])
def test_no_output_replaces_another(tmp_path, monkeypatch, name):
    for file in ("a.wav", "a.flac"):
        audio.write(tmp_path / "in" / file, audio.Audio(tone_in_noise(100), 1600))
    sources = [str(tmp_path / "in")] if name == "batch_of_files.py" else [str(p) for p in (tmp_path / "in").iterdir()]
    names = runpy.run_path(str(EXAMPLES / name))
    monkeypatch.setattr(saf_jax, "Enhancer", lambda *_: SimpleNamespace(config=CONFIG))
    monkeypatch.setattr(saf_jax, "load_weights", lambda _: ())
    arguments = [*sources, str(tmp_path / "out")] if name == "batch_of_files.py" else [str(tmp_path / "out"), *sources]
    with pytest.raises(SystemExit, match="would go to one file"):
        names["main"]("weights", *arguments)
