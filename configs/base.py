"""Every field of an experiment, once, with the paper's values for GSM8K. The other files change this one; a misspelt field is an error."""

from typing import Any

from ml_collections import ConfigDict


def get_config() -> Any:
    """The base config; locked, so that only fields that stand here can be set."""
    config = ConfigDict()
    _method(config)
    _models(config)
    _feedback(config)
    _judges(config)
    _compute(config)
    _sharding(config)
    config.lock()
    return config


def _method(config: ConfigDict) -> None:
    config.method = "ilr"  # sft | ilr | naive | dpo | sft_chosen | dpo_pairs | weak; several, by commas, share their common stages
    config.feedback = "evaluator"  # evaluator (unreliable) | oracle (grades of the task) | judge (see below)
    # weak (the supervisor's labels) | correct (only those graded right) | gold (the references) | given (those that came with the data)
    config.demos = "weak"
    config.demos_error = 0.0  # of gold demos: this share is replaced by wrong answers of the supervisor
    config.given = "untrusted"  # demos=given: which of them are refined: untrusted (of rows without a trusted reference) | all
    config.rounds = 6  # rounds of ilr, naive and dpo
    config.folds = 2  # ilr, naive: parts of the labels; a part's proposals come from a model trained on the others
    config.alpha = 0.15  # at most this share of labels changes in a round
    config.alpha_of = "disagreeing"  # of which labels alpha is a share: disagreeing | all | none (threshold 0.5 only)
    config.seed = 0  # everything random follows from it

    config.refine = ConfigDict()  # a round of ilr and naive
    config.refine.proposer = "cross"  # cross (models that have not seen the label) | same (one, of all labels) | ensemble (all fold models)
    config.refine.samples = 1  # proposals from each of these models; more than one: decoding.proposals = sample
    config.refine.pick = "log_prob"  # of several proposals: log_prob (the likeliest) | feedback (the one it likes best; naive: log_prob)
    config.refine.rule = (
        "replace"  # an accepted proposal: replace (the label, one for one) | filter (only drops it) | add (stands beside it)
    )

    config.task = ConfigDict()
    config.task.name = "gsm8k"  # gsm8k | bird | saferpaca | jsonl (your own data: docs/data.md) | wordmath, minisql (made here)
    # Local folder of the data (minisql: where it is made); jsonl: a file, a folder or a Hub id, @SPLIT behind it; empty: the usual place
    config.task.path = ""
    config.task.test_path = ""  # jsonl: the test split, likewise; empty: the split "test" of path if it has one
    config.task.columns = ""  # jsonl: what the data calls the columns: question=query,answer=response; empty: found by their names
    config.task.answers = "trusted"  # jsonl: the answers are trusted (references) | given (unchecked, but for rows that are marked)
    config.task.train_examples = 0  # use the first n of the train split; 0: all
    config.task.test_examples = 0  # use the first n of the test split; 0: all
    config.task.seed = 0  # wordmath, minisql: which problems are drawn
    # gsm8k, wordmath: numeric | released (string comparison); bird, minisql: official | strict; jsonl: exact | numeric | regex |
    # sql | sql-strict (as BIRD's official and strict) | MODULE:FUNCTION. Empty: the first
    config.task.grader = ""
    config.task.pattern = ""  # jsonl, regex: the expression whose first group is compared
    # Folder of NAME/NAME.sqlite. jsonl, sql: for the names in the column "database"; bird: where they are not in path or ILR_BIRD_PATH
    config.task.databases = ""


def _models(config: ConfigDict) -> None:
    config.weak = ConfigDict()  # the supervisor whose answers are the unreliable demonstrations
    config.weak.model = "google/gemma-2b"  # Hub id, local folder, or embedded:NAME
    config.weak.template = "plain"  # how it is asked: plain (USER: ... ASSISTANT:) | chat (the chat template that came with the model)
    config.weak.optimizer = "adamw"  # adamw | adafactor | rmsprop
    config.weak.learning_rate = 5e-4
    config.weak.epochs = 2

    config.strong = ConfigDict()  # the model that is fine-tuned on those demonstrations
    config.strong.model = "mistralai/Mistral-7B-v0.1"
    config.strong.template = "plain"  # plain | chat
    config.strong.optimizer = "adamw"
    config.strong.learning_rate = 1e-4
    config.strong.epochs = 2

    config.sft = ConfigDict()  # supervised fine-tuning, weak and strong
    config.sft.batch = 32  # examples per optimiser step
    config.sft.max_length = 512  # tokens of prompt and answer; longer examples lose their end
    config.sft.normalize = "sequence"  # loss: sequence (mean over examples of token means) | token (mean over tokens)
    config.sft.warmup = 0.05  # share of the steps; cosine decay to zero after it. The evaluator and DPO use it too

    config.lora = ConfigDict()  # adapters of SFT and DPO, which train nothing else; the evaluator trains all its weights
    config.lora.rank = 64
    config.lora.alpha = 128.0
    config.lora.modules = "all"  # every linear layer but the head | those named, separated by commas: q_proj,v_proj

    config.decoding = ConfigDict()
    config.decoding.labels = "beam"  # the supervisor's answers: beam | sample
    config.decoding.proposals = "beam"  # beam | sample
    config.decoding.temperature = 1.0  # where they are sampled
    config.decoding.top_k = 0  # of everything that is sampled: only the k likeliest tokens; 0: all
    config.decoding.top_p = 1.0  # of everything that is sampled: only the likeliest tokens that hold this probability; 1: all
    config.decoding.beams = 4
    config.decoding.length_rule = "total"  # beam scores divide by: total (prompt + output, as released) | generated (as transformers)
    config.decoding.max_new_tokens = 256


def _feedback(config: ConfigDict) -> None:
    config.evaluator = ConfigDict()  # the comparison model, trained on the first half of the data
    config.evaluator.model = "google/gemma-2b"
    config.evaluator.optimizer = "adamw"
    config.evaluator.learning_rate = 1e-6
    config.evaluator.epochs = 5  # at most; early stopping on validation loss
    config.evaluator.patience = 1  # epochs without improvement before stopping
    config.evaluator.batch = 16
    config.evaluator.checkpoints = 10  # of the weak model's training, whose answers make the pairs
    config.evaluator.temperature = 0.6  # of those answers
    config.evaluator.validation = 0.1  # share of the pairs

    config.dpo = ConfigDict()
    config.dpo.optimizer = "rmsprop"
    config.dpo.learning_rate = 1e-6
    config.dpo.epochs = 2
    config.dpo.batch = 32
    config.dpo.beta = 0.1
    config.dpo.reference = "previous"  # previous (the policy as the round before left it) | base (the model without adapters)
    config.dpo.samples = 6  # answers per question and round, in disjoint pairs
    config.dpo.temperature = 0.7
    config.dpo.share = 0.15  # of the pairs, the ones the evaluator is surest of
    config.dpo.loss = "sigmoid"  # sigmoid | ipo | robust | hinge
    config.dpo.smoothing = 0.0  # share of preferences taken for wrong, by sigmoid (conservative DPO) and robust
    config.dpo.scoring = "symmetric"  # symmetric | released (both prompts in one order, as in the released code: scores of 0.5)

    config.naive = ConfigDict()
    config.naive.match_count = False  # replace as many labels as ilr did in the same round, not a share alpha of all

    config.oracle = ConfigDict()
    config.oracle.error = 0.0  # share of an oracle's verdicts that are turned round: the dial of its unreliability
    config.oracle.capped = False  # hold feedback=oracle to alpha too, in DPO to dpo.share (the released code: docs/design.md)


def _judges(config: ConfigDict) -> None:
    config.judge = ConfigDict()  # who compares for feedback=judge, and test answers with references where a task has no grader
    config.judge.kind = "endpoint"  # endpoint (OpenAI-compatible) | model (one of our own, as it is) | evaluator (the trained one)
    config.judge.model = "gpt-4o-mini"  # the endpoint's name for it; of kind model: Hub id, local folder, or embedded:NAME
    config.judge.template = "plain"  # of kind model: plain | chat
    config.judge.base_url = "https://api.openai.com/v1"  # or http://localhost:8000/v1 of vLLM, http://localhost:11434/v1 of Ollama, ...
    config.judge.key_name = "OPENAI_API_KEY"  # variable of the environment, or of a file .env, that holds the key; empty: none is wanted
    config.judge.top_logprobs = 20  # alternatives that a verdict's probability is read from (TGI gives 5); 0: read the letter only
    config.judge.max_invalid = 0.1  # share of comparisons without a valid verdict at which the run stops; below it they are left out

    config.embed = ConfigDict()  # how alike answers are, where a task reads nothing off them
    config.embed.kind = "local"  # local (character n-grams, no network) | endpoint (OpenAI-compatible)
    config.embed.model = "text-embedding-3-small"
    config.embed.base_url = "https://api.openai.com/v1"
    config.embed.key_name = "OPENAI_API_KEY"

    config.endpoint = ConfigDict()  # how endpoints are asked; nothing here changes an answer
    config.endpoint.timeout = 60.0  # seconds until the whole reply must be there
    config.endpoint.attempts = 8  # of a request that fails in passing; waits double from 1 second
    config.endpoint.workers = 8  # requests at a time
    config.endpoint.max_requests = 0  # sent by one start of the command, to the judge and to the embedder each; 0: no bound
    config.endpoint.max_tokens = 0  # likewise, as the endpoint counts them
    config.endpoint.cache = "~/.cache/ilr_jax/answers"  # all that was answered, for all runs; it is not asked again


def _compute(config: ConfigDict) -> None:
    config.compute = ConfigDict()  # how, not what: nothing here changes a result beyond rounding, but for the dtype
    config.compute.dtype = "auto"  # float32 | bfloat16; auto: bfloat16 on accelerators, float32 on CPU
    config.compute.attention = "auto"  # gemm | xla | cudnn | splash; auto: splash on TPUs (heads of a multiple of 128), cudnn on one
    # NVIDIA GPU in bfloat16 (heads up to 128), else gemm
    config.compute.remat = "none"  # activations that training computes again: none | dots (all but products) | full
    config.compute.microbatches = 1  # parts of a batch that are computed one after another
    config.compute.evaluator = ConfigDict()  # the same of the evaluator, whose gradients of all weights take more memory than activations
    config.compute.evaluator.remat = "same"  # same (as compute.remat) | none | dots | full
    config.compute.evaluator.microbatches = 0  # 0: as compute.microbatches
    config.compute.slots = 64  # rows that are sampled at a time; adapters that answer in one pass share them
    config.compute.beam_batch = 32  # prompts in beam search at a time, shared likewise
    config.compute.bucket = 64  # prompts are padded to multiples of it: larger, and fewer programs are compiled, each for longer prompts
    config.compute.score_batch = 64  # rows scored at a time
    config.compute.save_every = 60.0  # seconds between training checkpoints
    config.compute.save_keep = 2  # of a training under way: where the newest is damaged, it goes on from the one before
    config.compute.cache = "~/.cache/ilr_jax/xla"  # compiled programs, reused by later runs; empty: none


def _sharding(config: ConfigDict) -> None:
    config.sharding = ConfigDict()  # how work is split over devices: changes no result beyond rounding. Sizes of the mesh; 0: chosen
    config.sharding.data = 0  # devices that split rows and each hold all weights
    config.sharding.fsdp = 0  # devices that split rows and weights; 0: what the largest model's training needs beside tensor
    config.sharding.tensor = 0  # devices that split heads, MLP and vocabulary; 0: what the largest model's training needs, up to 8
    config.sharding.rules = (
        ConfigDict()
    )  # which mesh axes split what: some of data, fsdp, tensor; empty: none; auto: tensor, where it divides
    config.sharding.rules.batch = "data,fsdp"  # rows
    config.sharding.rules.embed = "fsdp"  # weights along the model's width
    config.sharding.rules.heads = "tensor"  # attention heads
    config.sharding.rules.kv_heads = "auto"  # heads of keys and values, of weights and cache
    config.sharding.rules.mlp = "tensor"  # the MLP's width
    config.sharding.rules.vocab = "auto"  # embedding and output head
