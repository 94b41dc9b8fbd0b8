"""The command `saf-jax demo`: the whole job on a corpus that the package makes itself.

Makes synthetic voices in generated noise, trains `configs/tiny.yaml` on them, scores the result on voices and noises
that the training did not have, enhances one file and draws it.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from saf_jax.config import add_set_argument
from saf_jax.errors import UserError
from saf_jax.huge_pages import restart_with_huge_pages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", default="runs/demo", help="folder for everything (default: runs/demo)")
    parser.add_argument("--config", default="tiny", help="config to train (default: tiny)")
    add_set_argument(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    check_packages()
    restart_with_huge_pages()
    result = run_demo(Path(args.workdir), args.config, args.set, quiet=args.quiet)
    print(result["text"])
    return 0


def check_packages() -> None:
    """Raises `UserError` before minutes are spent, if a package that the demo needs is missing."""
    import importlib.util

    missing = [name for name in ("espeakng_loader", "matplotlib", "pesq") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the demo needs {', '.join(missing)}: pip install 'saf-jax[demo]'")


def run_demo(
    workdir: Path, config_name: str = "tiny", overrides: list[str] = (), *, quiet: bool = False
) -> dict[str, Any]:
    """Runs all parts; a part that is done already in this folder is not done again.

    Args:
      workdir: folder for the corpus, the training run, the results and the picture.
      config_name: what to train.
      overrides: settings that win over the config's.
      quiet: no progress bars.

    Returns:
      The evaluation's summary, with "text" (what to print), "picture" and "enhanced" (paths) besides.
    """
    from saf_jax import audio, evaluation, tables
    from saf_jax.config import load_config
    from saf_jax.data.demo_corpus import make_demo_corpus
    from saf_jax.jit_cache import use_compilation_cache
    from saf_jax.pictures import save_spectrograms
    from saf_jax.training import train_and_evaluate

    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:4.0f} s] {text}", flush=True)

    use_compilation_cache()
    say("making the demo corpus: synthetic voices (eSpeak NG) in generated noise")
    corpus = make_demo_corpus(workdir / "corpus")
    folders = {
        "train_clean": corpus.train_clean,
        "train_noisy": corpus.train_noisy,
        "valid_clean": corpus.valid_clean,
        "valid_noisy": corpus.valid_noisy,
    }
    # As JSON, which is YAML: a name may hold what YAML takes for more than a name.
    named = (f"data.{key}={json.dumps(str(path), ensure_ascii=False)}" for key, path in folders.items())
    config = load_config(config_name, [*named, *overrides])
    say(f"training configs/{config_name}.yaml (a few minutes; interrupted and called again, it resumes)")
    trained = train_and_evaluate(config, workdir / "training", quiet=quiet)
    if trained["preempted"]:
        raise UserError("the demo was stopped while training: the same command goes on")
    say("scoring held-out voices in held-out kinds of noise")
    summary = evaluation.evaluate(
        clean=corpus.test_clean,
        noisy=corpus.test_noisy,
        out=workdir / "results",
        weights=workdir / "training",
        name=f"SAF {config_name} (ours)",
        quiet=quiet,
    )
    say("drawing one file")
    pair = audio.list_pairs(corpus.test_clean, corpus.test_noisy)[0]
    enhanced = workdir / "results" / "enhanced" / f"{pair.name}.wav"
    rate = config.stft.sample_rate_hz
    picture = workdir / "spectrograms.png"
    save_spectrograms(
        picture,
        {
            "noisy": audio.read_mono(pair.noisy, rate),
            "enhanced": audio.read_mono(enhanced, rate),
            "clean": audio.read_mono(pair.clean, rate),
        },
        rate,
    )
    say("done")
    text = f"""
{tables.format_text(tables.paper_table([summary]))}

Noisy and ours: {summary["files"]} files of the demo corpus, voices and noises held out. The other rows are published
results on another test set (Voice Bank + DEMAND) and stand there for orientation only.

Listen:  {pair.noisy}
         {enhanced}
         {pair.clean}
Look:    {picture}

Next:
  saf-jax enhance YOUR_RECORDING.wav -o clean.wav --weights {workdir / "training"}
  python train.py --config configs/paper.yaml --workdir runs/paper --set data.train_clean=DIR data.train_noisy=DIR \\
      data.valid_clean=DIR data.valid_noisy=DIR
  python eval.py --weights runs/paper --clean DIR --noisy DIR --out results"""
    return {**summary, "text": text, "picture": str(picture), "enhanced": str(enhanced)}
