"""The sections `data` and `mixing` of the config refuse what makes no sense, and name the key."""

import pytest

from saf_jax.config import load_config
from saf_jax.errors import UserError


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("mixing.snr_db=[5, -5]", r"mixing\.snr_db=\[5\.0, -5\.0\]: must be two numbers"),
        ("mixing.snr_db=5", r"mixing\.snr_db=\[5\.0\]: must be two numbers"),
        ("mixing.babble=1.5", r"mixing\.babble=1\.5: is a probability"),
        ("mixing.reverberation=-0.1", r"mixing\.reverberation=-0\.1: is a probability"),
        ("mixing.most_noises=0", r"mixing\.most_noises=0: must be at least 1"),
        ("mixing.speed_factor=[0, 1]", r"mixing\.speed_factor=\[0\.0, 1\.0\]: must lie in"),
        ("mixing.clipping_part=[0.1, 0.9]", r"mixing\.clipping_part"),
        ("mixing.band_limit_hz=[10, 20]", r"mixing\.band_limit_hz"),
        ("mixing.equaliser_db=-1", r"mixing\.early_ms and mixing\.equaliser_db"),
        ("mixing.bable=0.1", r"unknown key mixing\.bable: did you mean mixing\.babble"),
        ("data.cache_gb=-1", r"data\.cache_gb=-1\.0: must not be negative"),
        ("data.train_noise_weights=[1, 2]", r"name one for each of the 0 folders"),
    ],
)
def test_bad_value_names_its_key(setting, message):
    with pytest.raises(UserError, match=message):
        load_config("paper", [setting])


def test_babble_and_generated_together():
    with pytest.raises(UserError, match=r"mixing\.babble and mixing\.generated"):
        load_config("paper", ["mixing.babble=0.6", "mixing.generated=0.6"])
    assert load_config("paper", ["mixing.babble=0.5", "mixing.generated=0.5"]).mixing.babble == 0.5
