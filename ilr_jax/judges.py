"""One of our own models as a judge: asked as it is, without training, which of two answers is better.

It is asked in the words of `services.judge`, put as one question of the tokenisation policy. Not here: the trained evaluator (`evaluator`).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ilr_jax import batches, hosts, sharding
from ilr_jax.progress import Progress
from ilr_jax.refine.judge import ScoreFn
from ilr_jax.roles import Ask, Model
from ilr_jax.services.judge import LETTERS, Request3, text
from ilr_jax.stages import Bench
from ilr_jax.train import steps


def _asker(bench: Bench, model: Model, room: int | None = 1) -> Ask:
    return lambda requests: model.tokenizer.judgements([text(*request, bench.config.seed) for request in requests], room)


def check(bench: Bench, model: Model, pairs: Sequence[tuple[str, str]]) -> None:
    """Raise ValueError for a (question, reference) that leaves no room for two answers, as `Model.check_comparisons`."""
    model.check_comparisons(pairs, bench.config.decoding.max_new_tokens, _asker(bench, model, None))
    model.tokenizer.letters(LETTERS)


def score_fn(bench: Bench, model: Model) -> ScoreFn:
    """[(prompt, a, b)] -> p(B) / (p(A) + p(B)) of the token that the model would write next."""
    letters, ask = model.tokenizer.letters(LETTERS), _asker(bench, model)
    log_probs = steps.token_log_probs(bench.setup(model.config))

    def score(requests: Sequence[Request3]) -> Float[np.ndarray, " n"]:
        """A probability a request, in their order."""
        asked = ask(requests)
        odds = np.full(len(requests), np.nan)
        with Progress("comparisons", len(requests), "verdicts") as progress:
            for taken, batch in batches.options(asked, letters, bench.rows(bench.config.compute.score_batch), model.tokenizer.pad):
                found = hosts.fetched(log_probs({}, model.params, sharding.put_rows(bench.layout, batch))).astype(np.float64)
                odds[taken] = (found[:, 1] - found[:, 0])[: len(taken)]
                progress.advance(len(taken))
        return 1 / (1 + np.exp(-odds))

    return score
