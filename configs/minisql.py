"""Text to SQL from end to end without a download: databases made here, answers run in the sandbox, on the embedded models.

Command:   python -m ilr_jax.main --config=configs/minisql.py --workdir=runs/minisql
Hardware:  two CPU cores
Hours:     3 min 48 s of CPU time in one run (all four methods); by the clock, on a machine that was not free, not measured
Expected:  that everything runs, and accuracies of zero. The embedded models have never seen SQL: in their corpus most of its letters are
           never a token, so these tokens' embeddings, which SFT leaves as they are, hardly differ, and even the best hidden states would
           leave 2.2 (Mistral) and 2.7 (Gemma) nats a token. To see the method at work on SQL, name models that know it:
           --config.weak.model=FOLDER --config.evaluator.model=FOLDER --config.strong.model=FOLDER
"""

from configs import quickstart


def get_config():
    """The quickstart's settings on another task, smaller."""
    config = quickstart.get_config()
    config.rounds = 2
    config.task.name = "minisql"
    config.task.train_examples = 400
    config.task.test_examples = 100
    return config
