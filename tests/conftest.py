"""Strict JAX for every test: eight emulated CPU devices, no silent rank promotion, shapes of annotations checked where there are arrays.

Programs are compiled at LLVM's level 0: most of the time goes into compiling what runs once, and this takes a third off the whole. To try
what users run: XLA_FLAGS=--xla_backend_optimization_level=3. The workers of pytest-xdist have cores of their own: the threads that XLA
starts for every core would wait for those of the other workers.
"""

import gc
import os
import sys
from collections.abc import Iterator

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
FLAGS = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}"  # the later of two wins
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook  # noqa: E402

CHECKED = ("models", "sample", "train", "refine", "services", "batches", "estimates", "evaluator", "feedback", "judges", "metrics")
if "pytest" in sys.modules:  # and not in the processes that tests start, which it would make slow
    install_import_hook([f"ilr_jax.{name}" for name in CHECKED], "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402
from made_up_bucket import NAME, emulated  # noqa: E402
from made_up_runs import make_workdir  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from ilr_jax.models import config as model_config  # noqa: E402
from ilr_jax.models import decoder, hf  # noqa: E402

TINY = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "rope_theta": 1000.0,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def pytest_configure(config: pytest.Config) -> None:
    if (worker := getattr(config, "workerinput", None)) and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[int(worker["workerid"].removeprefix("gw")) :: worker["workercount"]] or cores)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First what takes minutes, or a worker would still be at it when the others have ended."""
    items.sort(key=lambda item: item.path.name != "test_rounds_on_hosts.py")


@pytest.fixture(autouse=True)
def _own_programs():
    """A run keeps its compiled programs on disk; the tests after it do not."""
    yield
    if jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()


CHAT = (
    "{% for turn in messages %}<s>{{ turn['role'] }}\n{{ turn['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True, scope="module")
def _free_programs():
    """Linux maps 65,530 regions for a process (vm.max_map_count), a compiled kernel takes three, and XLA ends a process without room."""
    yield
    jax.clear_caches()
    gc.collect()


def write_tokenizer(folder: Path, template: str | None = CHAT) -> None:
    """A byte-level tokenizer in HF format that encodes any text, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(specials + alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = template
    fast.save_pretrained(str(folder))


def write_model(folder: Path, family: str, seed: int = 0, **fields) -> Path:
    """A tiny random model of `family` with its tokenizer, as a Hugging Face folder."""
    config = model_config.from_fields({**TINY, "model_type": family, "tie_word_embeddings": family == "gemma", **fields})
    hf.save_model(folder, config, decoder.init(config, jax.random.key(seed)), dtype="float32")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> dict[str, Path]:
    """Folders of a tiny random Gemma and Mistral."""
    root = tmp_path_factory.mktemp("models")
    return {family: write_model(root / family, family) for family in ("gemma", "mistral")}


def make_tiny_config(models: dict[str, Path]) -> ConfigDict:
    """The whole method in a few seconds: tiny random models, a handful of examples, one round."""
    from configs import quickstart

    config = quickstart.get_config()
    config.weak.model = config.evaluator.model = str(models["gemma"])
    config.strong.model = str(models["mistral"])
    config.rounds = 1
    config.task.train_examples, config.task.test_examples = 24, 8
    config.sft.max_length = 512  # their tokens are bytes
    config.sft.batch = config.dpo.batch = config.evaluator.batch = 8
    config.weak.epochs = config.strong.epochs = config.dpo.epochs = config.evaluator.epochs = 1
    config.evaluator.checkpoints = 3
    config.decoding.max_new_tokens = 8
    config.compute.slots = config.compute.beam_batch = 8
    config.compute.bucket = 512  # one program for prompts of all lengths
    config.sharding.update({"data": 1, "fsdp": 1, "tensor": 1})
    config.compute.cache = str(models["gemma"].parent.with_name("xla"))  # the runs of this session compile once
    return config


@pytest.fixture
def tiny_config(tiny_models) -> ConfigDict:
    return make_tiny_config(tiny_models)


@pytest.fixture
def workdir(tmp_path) -> Path:
    """A finished experiment with made-up figures."""
    return make_workdir(tmp_path / "one")


@pytest.fixture(scope="session")
def emulator() -> Iterator[None]:
    """`gs://made-up/...` is there, for this process and its children."""
    with emulated():
        yield


@pytest.fixture
def url(emulator, tmp_path) -> str:
    """A workdir in a bucket that nobody else uses."""
    return f"gs://{NAME}/{tmp_path.parent.name}/{tmp_path.name}"


def every_label_usable(patch: pytest.MonkeyPatch) -> None:
    """Random models never write `####`, without which a label is not trained on."""
    patch.setattr("ilr_jax.tasks.wordmath.WordMath.usable", lambda self, answer: True)


def child(workdir: str, models: str, *flags: str) -> None:
    """Run the tiny experiment as the command does, and exit with its code; for tests that send signals, or start several processes.

    With flags, these say on which mesh and how it starts, and the supervisor trains for long enough to be interrupted.
    """
    from configs import quickstart
    from ilr_jax import main, rounds

    with pytest.MonkeyPatch.context() as patch:
        every_label_usable(patch)
        config, run = make_tiny_config({path.name: path for path in Path(models).iterdir()}), rounds.run
        config.compute.save_every = 0.0  # after every step: whenever it is killed, there is something to go on from
        if flags:
            config.method, config.weak.epochs, config.compute.save_every = "ilr", 5, 1.0
        if judge := os.environ.get("MADE_UP_JUDGE"):
            config.feedback, config.judge.base_url, config.judge.key_name, config.weak.epochs = "judge", judge, "", 1
            config.endpoint.cache = f"{workdir}-answers"

        def begin(given: ConfigDict, folder: str) -> None:
            if flags:
                config.sharding = given.sharding
            run(config, folder)

        patch.setattr(rounds, "run", begin)
        main.leave(main.run(["child", f"--config={quickstart.__file__}", f"--workdir={workdir}", *flags]))
