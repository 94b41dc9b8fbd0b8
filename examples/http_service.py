"""An HTTP endpoint: wav or flac in, the enhanced wav out. Needs `pip install 'saf-jax[service]'`.

python examples/http_service.py WEIGHTS [PORT]
curl --data-binary @noisy.wav -H 'Content-Type: audio/wav' http://127.0.0.1:8000/enhance -o clean.wav

Errors are one line of text: 400 not readable as audio, 408 sent too slowly, 413 too large or too long, 415 another kind
of content, 500 a fault of this machine (told on stderr), 503 too busy or too slow. GET /health answers "ok". For TLS
and several hosts put a proxy in front.
"""

import asyncio
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import saf_jax
from saf_jax.audio_blocks import Recording, open_recording
from saf_jax.enhance_files import enhance_files
from saf_jax.enhance_jobs import Job
from saf_jax.errors import UserError
from saf_jax.jax_defects import avoid_fft_deadlock
from saf_jax.jit_cache import use_compilation_cache
from saf_jax.recomposition import Treatment

MOST_BYTES = 64 << 20
# A few bytes of flac can hold hours of silence: what comes out of the decoder has a limit of its own.
MOST_SAMPLES = 48000 * 600
# A low rate makes much of little: it is brought up to that of the network.
LEAST_RATE_HZ, NETWORK_RATE_HZ = 1000, 16000
BODY_SECONDS, WORK_SECONDS = 30.0, 60.0
AT_WORK, WAITING = 2, 8
TYPES = ("audio/", "application/octet-stream")


def enhanced(enhancer: saf_jax.Enhancer, body: bytes, deadline: float) -> bytes:
    """The whole job, on a thread: a recording -> its enhanced version as wav, rate and channels kept."""

    def check_time(seconds: float = 0.0) -> None:
        if time.monotonic() > deadline:
            raise HTTPException(503, "took too long: send a shorter recording, or try again later")

    check_time()
    with tempfile.TemporaryDirectory() as folder:
        recording, target = Recording(Path(folder) / "in", "body"), Path(folder) / "out.wav"
        recording.path.write_bytes(body)
        try:
            with open_recording(recording) as file:
                if file.samplerate < LEAST_RATE_HZ:
                    raise HTTPException(400, f"a rate of {file.samplerate} Hz: send at least {LEAST_RATE_HZ} Hz")
                if file.frames * file.channels * max(1.0, NETWORK_RATE_HZ / file.samplerate) > MOST_SAMPLES:
                    raise HTTPException(413, f"too long: at most {MOST_SAMPLES} samples, all channels together")
            for outcome in enhance_files(enhancer, [Job(recording, target)], Treatment(), check_time):
                if outcome.error is not None:
                    raise outcome.error
        except UserError as error:
            line = " ".join(str(error).splitlines())
            # What names the body is the sender's to mend; a full disk is not, and where it lies is not theirs to know.
            if line.startswith("body:"):
                raise HTTPException(400, line) from error
            print(f"error: {line}", file=sys.stderr)
            raise HTTPException(500, "the recording could not be enhanced here: try again later") from error
        return target.read_bytes()


async def read_body(request: Request) -> bytes:
    """The body, as long as it comes in time and does not grow too large."""
    too_large = HTTPException(413, f"too large: at most {MOST_BYTES} bytes")
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > MOST_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MOST_BYTES:
                    raise too_large
    except ClientDisconnect:
        raise HTTPException(400, "the body broke off") from None
    except TimeoutError:
        raise HTTPException(408, f"the body did not come within {BODY_SECONDS:g} s: send it again") from None
    return bytes(body)


def application(enhancer: saf_jax.Enhancer) -> Starlette:
    threads = ThreadPoolExecutor(AT_WORK)
    inside = 0

    async def answer(request: Request) -> Response:
        nonlocal inside
        if not request.headers.get("content-type", TYPES[0]).lower().startswith(TYPES):
            raise HTTPException(415, "send wav or flac with Content-Type: audio/wav or audio/flac")
        if inside >= AT_WORK + WAITING:
            raise HTTPException(503, "too busy: try again later", {"Retry-After": "5"})
        inside += 1
        try:
            body = await read_body(request)
            job = enhanced, enhancer, body, time.monotonic() + WORK_SECONDS
            wav = await asyncio.get_running_loop().run_in_executor(threads, *job)
        finally:
            inside -= 1
        return Response(wav, media_type="audio/wav")

    async def health(request: Request) -> Response:
        return PlainTextResponse("ok")

    return Starlette(routes=[Route("/enhance", answer, methods=["POST"]), Route("/health", health)])


def main(weights: str, port: str = "8000") -> None:
    # Threads enhance side by side, which one version of JAX needs help with.
    avoid_fft_deadlock()
    use_compilation_cache()
    enhancer = saf_jax.Enhancer(*saf_jax.load_weights(weights))
    # Compiled before the first request comes.
    enhancer(np.random.default_rng(0).normal(0, 0.1, 1000), enhancer.config.stft.sample_rate_hz)
    uvicorn.run(application(enhancer), port=int(port), timeout_keep_alive=5)


if __name__ == "__main__":
    main(*sys.argv[1:])
