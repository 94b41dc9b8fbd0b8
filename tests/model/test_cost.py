import dataclasses

import networks
import pytest

import saf_jax
from saf_jax.config import STFTConfig
from saf_jax.model.cost import context_frames, count_costs, count_macs_per_second


def test_costs_of_the_small_network_counted_by_hand():
    """Width 8, 17 bands folded to 9, kernel 5, window 3, dense and TCN dilations 1 and 2, both streams and outputs."""
    norm, prelu = 2 * 8, 8
    # Dense block: 1x1 of 8, then of 16 channels without bias; norm, PReLU, 3x3 depth-wise with bias.
    dense = (8 * 8 + norm + prelu + 9 * 8 + 8) + (16 * 8 + norm + prelu + 9 * 8 + 8)
    # Encoder: 2 -> 8, dense block, 2 * 8 -> 8; norm and PReLU at both ends.
    encoder = (2 * 8 + 8 + norm + prelu) + dense + (16 * 8 + 8 + norm + prelu)
    attention = norm + 3 * (8 * 8 + 8) + 25 * 8 + 8
    local = norm + 3 * (8 * 8 + 8) + 8 * 8  # the keys have no bias
    tcn = 2 * (norm + 2 * (8 * 8 + 8) + 3 * 8 + 8 + prelu)
    decoders = 2 * (dense + 8 * 16 + 16 + norm + prelu) + (8 * 1 + 1) + (8 * 2 + 2)
    parameters = 2 * encoder + (16 * 8 + 8) + attention + local + tcn + decoders
    assert parameters == 3651

    # Multiply-accumulates of one frame: 17 bands at full resolution, 9 folded.
    dense = (8 * 8 + 9 * 8) + (16 * 8 + 9 * 8)  # for each band
    encoder = 17 * (2 * 8 + dense) + 9 * 16 * 8
    attention = 9 * (3 * 8 * 8 + 25 * 8)
    local = 9 * (4 * 8 * 8 + 2 * 8 * 3)  # scores and weighted values over 3 bands
    tcn = 9 * 2 * (2 * 8 * 8 + 3 * 8)
    decoders = 2 * 9 * (dense + 8 * 16) + 17 * (8 * 1 + 8 * 2)
    frame = 2 * encoder + 9 * 16 * 8 + attention + local + tcn + decoders
    assert frame == 33_184

    assert count_costs(networks.config(), frames=1) == (parameters, frame)
    assert count_costs(networks.config()) == (parameters, 100 * frame)
    assert count_macs_per_second(networks.config()) == 100 * frame


def test_frames_are_counted_exactly_where_the_hop_does_not_divide_a_second():
    config = networks.config(stft=STFTConfig(sample_rate_hz=1600, window_samples=32, hop_samples=16))
    odd = dataclasses.replace(config, stft=dataclasses.replace(config.stft, sample_rate_hz=1000))
    per_frame = count_costs(config, frames=1)[1]
    assert count_macs_per_second(odd) == pytest.approx(per_frame * 1000 / 16)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (11, 11)),  # 2 * (1 + 2) + 2 + 1 + 2
        ({"causal": True}, (22, 0)),
        ({"layers": 3}, (21, 21)),
        ({"attention_kernel": 0}, (9, 9)),
        ({"attention_kernel": 21}, (19, 19)),
        ({"tcn_dilations": ()}, (8, 8)),
        ({"tcn_kernel": 5}, (14, 14)),
        ({"dense_dilations": ()}, (5, 5)),
        ({"layers": 0}, (6, 6)),
    ],
    ids=str,
)
def test_context(changes, expected):
    assert context_frames(networks.model(**changes)) == expected


def test_cost_falls_with_the_stride_and_the_size_of_the_paper_holds():
    paper = saf_jax.load_config("paper")
    coarse = saf_jax.load_config("paper", ["model.frequency_stride=4"])
    assert 575_000 <= count_costs(paper)[0] <= 584_999
    assert count_macs_per_second(coarse) < 0.75 * count_macs_per_second(paper)
