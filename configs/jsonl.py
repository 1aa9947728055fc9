"""Your own data: demonstrations that nobody vouches for, cleaned with the help of the rows that you do trust (docs/data.md).

Command:   ilr run --config=configs/jsonl.py --config.task.path=FILE --workdir=runs/mine
           ilr export runs/mine --method ilr --labels cleaned.jsonl
           with real models: --config.weak.model=google/gemma-2b --config.evaluator.model=google/gemma-2b
           --config.strong.model=mistralai/Mistral-7B-v0.1, and the learning rates and lengths of configs/base.py
Hardware:  two CPU cores for a try-out with the embedded models, which know little but word problems; with real models that of gsm8k.py
Hours:     45 min for 800 rows, timed once on two cores that a dozen other programs shared; with the cores to itself it takes less
Expected:  docs/data.md, at the end: on made-up noise the share of right labels rises from 66.5 % to 74.0 % in three rounds
"""

from configs import quickstart


def get_config():
    """The quickstart's models and settings on a file of one's own, whose answers are what is refined."""
    config = quickstart.get_config()
    config.method = "sft,ilr"
    config.demos = "given"
    config.alpha_of = "disagreeing"
    config.task.name = "jsonl"
    config.task.answers = "given"
    config.task.grader = "exact"
    config.task.train_examples = config.task.test_examples = 0
    config.sft.max_length = 512
    config.decoding.max_new_tokens = 128
    return config
