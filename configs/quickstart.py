"""The whole method in minutes on a laptop: the embedded task, an embedded Gemma that supervises an embedded Mistral.

Command:   make quickstart     (or: ilr demo; or: python -m ilr_jax.main --config=configs/quickstart.py --workdir=runs/quickstart)
Hardware:  two CPU cores
Hours:     see docs/results.md
Expected:  see docs/results.md
"""

from configs import base


def get_config():
    """A fair miniature of the paper's GSM8K setting: gap between the models, unreliable evaluator, all four methods."""
    config = base.get_config()
    config.method = "sft,ilr,naive,dpo"
    config.rounds = 3
    config.task.name = "wordmath"
    config.task.train_examples = 2000
    config.task.test_examples = 500
    config.weak.model = config.evaluator.model = "embedded:gemma"
    config.weak.learning_rate = 4e-3
    config.strong.model = "embedded:mistral"
    config.strong.learning_rate = 1e-3
    config.sft.max_length = 256
    config.lora.rank = 16
    config.lora.alpha = 32.0
    config.evaluator.learning_rate = 3e-4
    config.evaluator.epochs = 1
    config.decoding.max_new_tokens = 96
    config.dpo.learning_rate = 1e-4
    return config
