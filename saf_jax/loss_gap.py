"""The gap between training and validation loss, by which overfitting shows."""

from collections.abc import Iterable, Mapping

from saf_jax.config import LossConfig


class LossGap:
    """Means of the training loss from one validation to the next.

    The training loss may have terms that validation has not, such as a discriminator's: only terms that both have are
    compared. It is measured in training mode, on crops and mixtures that change from epoch to epoch; so the gap says
    something by its course, less by its size.

    Args:
      config: weights of the terms.
    """

    def __init__(self, config: LossConfig):
        self._config = config
        self._sums: dict[str, float] = {}
        self._steps = 0

    def add(self, means: Mapping[str, float], steps: int) -> None:
        """Takes the means of the loss's terms, by name, over some steps."""
        for name, mean in means.items():
            self._sums[name] = self._sums.get(name, 0.0) + steps * mean
        self._steps += steps

    def take(self, valid_loss: float, terms: Iterable[str]) -> dict[str, float]:
        """What a validation adds to the log: "train_loss" since the last one and "gap"; nothing before the first step.

        Args:
          valid_loss: weighted sum of the terms on the validation recordings.
          terms: their names.
        """
        if not self._steps:
            return {}
        train_loss = sum(getattr(self._config, name) * self._sums[name] / self._steps for name in terms)
        self._sums, self._steps = {}, 0
        return {"train_loss": train_loss, "gap": valid_loss - train_loss}
