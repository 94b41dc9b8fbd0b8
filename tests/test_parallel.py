import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saf_jax import parallel

TREE = {
    "kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "count": np.float32(2),
    "losses": [np.ones(4, np.float32)],
}


def sums_of(tree):
    def step(state, batch):
        scaled = jax.tree.map(lambda leaf: leaf * batch["factor"][0], state)
        return state, parallel.sum_over_devices(scaled)

    factors = np.arange(1, jax.device_count() + 1, dtype=np.float32)
    state, batch = parallel.put_state(tree), parallel.put_batch({"factor": factors})
    return parallel.map_over_devices(step)(state, batch)[1]


@pytest.mark.parametrize("processes", [1, 2])
def test_every_array_is_summed_over_all_devices(monkeypatch, processes):
    count = jax.device_count()
    assert count == 8
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    got = sums_of(TREE)
    jax.tree.map(lambda sums, leaf: np.testing.assert_array_equal(sums, leaf * count * (count + 1) / 2), got, TREE)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), got) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), TREE
    )


@pytest.mark.parametrize(("processes", "operands"), [(1, 3), (2, 1)])
def test_between_processes_on_cpus_all_arrays_travel_as_one(monkeypatch, processes, operands):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    # A function of its own: JAX keeps what it has traced.
    traced = jax.make_jaxpr(lambda tree: parallel.sum_over_devices(tree), axis_env=[(parallel.DEVICES, 2)])
    program = traced(jax.tree.map(jnp.asarray, TREE))
    summed = [equation for equation in program.eqns if "psum" in equation.primitive.name]
    assert sum(len(equation.invars) for equation in summed) == operands
