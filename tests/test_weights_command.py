import pytest

from saf_jax import weights_command
from saf_jax.cli import main
from saf_jax.pretrained import shipped_path, shipped_weights


@pytest.mark.parametrize("name", shipped_weights())
def test_card_states_what_the_listing_needs(name, capsys):
    head = weights_command.card_head(name)
    assert {"data_licences", "wb_pesq_voicebank59", "noisy_wb_pesq_voicebank59"} <= set(head)
    assert shipped_path(name).with_suffix(".md").read_text(encoding="utf-8").count("saf-jax eval") >= 1
    assert main(["weights"]) == 0
    assert f"{name}: " in capsys.readouterr().out


def test_no_weights_are_told_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr("saf_jax.pretrained.shipped_weights", list)
    assert main(["weights"]) == 2
    assert "no weights come with this version: train a network" in capsys.readouterr().err


def test_facts_and_recommendation(monkeypatch, tmp_path, capsys):
    """A shipped network as it will lie in the package: weights, and a card with a head."""
    import networks

    from saf_jax.model.net import SAFNet
    from saf_jax.pretrained import save_weights

    config = networks.least()
    variables = networks.random_variables(
        SAFNet(config.model), networks.np.zeros((1, 8, config.stft.bins), "complex64")
    )
    save_weights(tmp_path / "mine.safetensors", config, variables)
    head = "data_licences: CC BY 4.0\nwb_pesq_voicebank59: 2.4\nnoisy_wb_pesq_voicebank59: 1.84\n"
    (tmp_path / "mine.md").write_text(f"---\n{head}---\n# mine\n")
    monkeypatch.setattr("saf_jax.pretrained.shipped_path", lambda name: tmp_path / f"{name}.safetensors")
    assert main(["weights", "--recommend"]) == 0
    out = capsys.readouterr().out
    assert (
        "mine: " in out and "WB-PESQ 2.40 (noisy 1.84)" in out and "CC BY 4.0" in out and "times real time here" in out
    )
    assert out.splitlines()[-1] == "recommended here: mine"


def test_recommends_the_best_that_is_fast_enough():
    rows = [
        {"name": "slow", "real_time_factor": 1.5, "wb_pesq_voicebank59": 3.5},
        {"name": "good", "real_time_factor": 0.5, "wb_pesq_voicebank59": 2.9},
        {"name": "small", "real_time_factor": 0.01, "wb_pesq_voicebank59": 2.4},
    ]
    assert weights_command.recommended(rows) == "good"
    assert weights_command.recommended(rows[:1]) is None
