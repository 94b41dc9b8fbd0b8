import numpy as np
import oracle
import pytest
from networks import model, random_variables

from saf_jax.model.tcn import TCN

FRAMES = [9, 6]
MASK = (np.arange(9) < np.array(FRAMES)[:, None])[:, :, None, None]


def features():
    return np.random.default_rng(0).normal(0.3, 1.2, (2, 9, 5, 8)).astype(np.float32)


@pytest.mark.parametrize(
    "changes",
    [{}, {"causal": True}, {"tcn_kernel": 5, "tcn_dilations": (2,)}, {"norm": "batch", "tcn_dilations": (1, 3)}],
    ids=str,
)
def test_equals_its_definition(changes):
    config, x = model(**changes), features()
    module = TCN(config)
    variables = random_variables(module, x, MASK, False)
    p, s = variables["params"], variables.get("batch_stats", {})
    np.testing.assert_allclose(module.apply(variables, x, MASK, False), oracle.tcn(p, s, x, FRAMES, config), atol=1e-4)


def test_without_dilations_it_passes_its_input_on():
    x, module = features(), TCN(model(tcn_dilations=()))
    assert random_variables(module, x, MASK, False) == {}
    np.testing.assert_array_equal(module.apply({}, x, MASK, False), x)
