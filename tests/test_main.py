"""The command line of an experiment: what a user can do wrong is one message and exit code 2, and leaves the workdir free."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from conftest import make_tiny_config, write_model
from safetensors.numpy import load_file, save_file

from ilr_jax import cli, main
from ilr_jax.models import platform

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # how ml_collections reads a config's file
ROOT = Path(__file__).parent.parent
QUESTIONS = {"question": ["What is 1+1?", "What is 2+2?"], "answer": ["1+1=2\n#### 2", "2+2=4\n#### 4"]}


@pytest.fixture
def run(tiny_models, tmp_path, capsys):
    """`run("--config.x=1")` is the command with the tiny models; returns the exit code and what it said."""
    config, ours = make_tiny_config(tiny_models), [f"--config={ROOT}/configs/quickstart.py", f"--workdir={tmp_path}/run"]
    for section, names in {"task": ("train_examples", "test_examples"), "decoding": ("max_new_tokens",)}.items():
        ours += [f"--config.{section}.{name}={config[section][name]}" for name in names]
    ours += [f"--config.{role}.model={config[role].model}" for role in ("weak", "strong", "evaluator")]
    ours += [f"--config.sft.batch={config.sft.batch}", "--config.evaluator.checkpoints=3", "--config.compute.slots=8"]
    ours += [f"--config.sft.max_length={config.sft.max_length}"]
    ours += [f"--config.compute.cache={config.compute.cache}"]

    def call(*words):
        with flagsaver.flagsaver():
            code = main.run(["ilr run", *ours, *words])
        return code, capsys.readouterr().err

    yield call
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)


def gsm8k(folder, train=QUESTIONS, test=QUESTIONS):
    splits = {"train": datasets.Dataset.from_dict(train), "test": datasets.Dataset.from_dict(test)}
    datasets.DatasetDict(splits).save_to_disk(folder)
    return ["--config.task.name=gsm8k", f"--config.task.path={folder}"]


def with_tensors(change):
    def broken(models, folder):
        shutil.copytree(models["mistral"], folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return [f"--config.strong.model={folder}"]

    return broken


def with_field(models, folder):
    shutil.copytree(models["mistral"], folder)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"attention_sinks": 4}))
    return [f"--config.strong.model={folder}"]


def without_tokenizer(models, folder):
    shutil.copytree(models["mistral"], folder)
    for path in folder.glob("*token*"):
        path.unlink()
    return [f"--config.strong.model={folder}"]


def damaged(name):
    def broken(models, folder):
        words = gsm8k(folder)
        (folder / name).write_text('{"spl')
        return words

    return broken


BAD = {
    "misspelt key": (lambda *_: ["--config.rouns=2"], "no such field in the config: 'rouns'. Did you mean \"rounds\""),
    "misspelt nested key": (lambda *_: ["--config.task.nam=x"], "no such field in the config: 'nam'. Did you mean \"name\""),
    "key below a value": (lambda *_: ["--config.weak.model.x=1"], "no such field in the config"),
    "misspelt value": (lambda *_: ["--config.feedback=evalutor"], "did you mean 'evaluator'?"),
    "misspelt method": (
        lambda *_: ["--config.method=irl"],
        "wanted some of sft, ilr, naive, dpo, sft_chosen, dpo_pairs, weak; got 'irl'; did you mean 'ilr'",
    ),
    "bad flag value": (lambda *_: ["--config.rounds=three"], "flag --config.rounds=three"),
    "unknown flag": (lambda *_: ["--rounds=3"], "a field of the config is given as --config.FIELD=VALUE"),
    "no flag": (lambda *_: ["rounds=3"], "wanted flags (--name=value), got rounds=3"),
    "empty workdir": (lambda *_: ["--workdir="], "wanted a folder, got an empty name"),
    "missing config": (lambda *_: ["--config=no/such.py"], "--config=no/such.py: no such file"),
    "missing tensor": (with_tensors(lambda t: t.pop("model.norm.weight")), "model.norm.weight: missing, wanted shape (32,)"),
    "extra tensor": (with_tensors(lambda t: t.update(odd=np.zeros(3, np.float32))), "odd: not part of this model"),
    "misshapen tensor": (
        with_tensors(lambda t: t.update({"model.norm.weight": np.zeros(7, np.float32)})),
        "model.norm.weight: wanted shape (32,), got (7,)",
    ),
    "unsupported field": (with_field, "attention_sinks=4: unknown field"),
    "no tokenizer": (without_tokenizer, "wanted tokenizer.json or tokenizer.model"),
    "no such model": (lambda *_: ["--config.weak.model=embedded:gema"], "the embedded models are"),
    "large vocabulary": (
        lambda models, folder: [f"--config.strong.model={write_model(folder, 'mistral', vocab_size=200)}"],
        "the tokenizer has 259 entries but the model's embedding only 200",
    ),
    "empty split": (lambda _, folder: gsm8k(folder, test={"question": [], "answer": []}), "test: the split is empty"),
    "no answer": (lambda _, folder: gsm8k(folder, train={"question": ["Q?"], "answer": [""]}), "train row 0: the answer is empty"),
    "damaged listing": (damaged("dataset_dict.json"), "dataset_dict.json"),
    "damaged state": (damaged("train/state.json"), "state.json"),
    "no network": (lambda *_: ["--config.task.name=gsm8k"], "cannot be had from the Hugging Face Hub"),
    "prompt over the context": (
        lambda models, folder: [f"--config.strong.model={write_model(folder, 'mistral', max_position_embeddings=40)}"],
        "tokens, wanted at most 39, one less than the context of",
    ),
    "prompt over max_length": (lambda *_: ["--config.sft.max_length=30"], "tokens, wanted at most 29, one less than sft.max_length"),
    "comparison over the context": (
        lambda models, folder: [f"--config.evaluator.model={write_model(folder, 'gemma', max_position_embeddings=160)}"],
        "may take",
    ),
    "more folds than examples": (lambda *_: ["--config.task.train_examples=2", "--config.folds=3"], "wanted at most the 1 examples"),
    "adapters on layers that are not there": (lambda *_: ["--config.lora.modules=q_proj,vproj"], "modules out of q_proj, k_proj"),
    "attention of another device": (lambda *_: ["--config.compute.attention=cudnn"], "wanted an NVIDIA GPU and bfloat16, got cpu"),
    "answers that are numbers": (
        lambda _, folder: gsm8k(folder, train={"question": ["Q?"], "answer": [4]}),
        "train row 0: wanted text in the column 'answer', got 4",
    ),
    "workdir without a name": (lambda *_: ["--workdir="], "wanted a folder, got an empty name"),
    "read-only workdir": (lambda *_: ["--workdir=/proc/nowhere"], "could not write /proc/nowhere"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_one_message_and_leaves_no_workdir(fault, run, tiny_models, tmp_path):
    make, message = BAD[fault]
    code, said = run(*make(tiny_models, tmp_path / "made"))
    assert code == 2 and message in said and said.count("error: ") == 1 and "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_a_corrected_command_may_use_the_same_workdir_and_a_changed_one_not(run, tmp_path, monkeypatch):
    monkeypatch.setattr("ilr_jax.rounds._record", lambda *_: None)
    assert run("--config.strong.model=embedded:mistrl")[0] == 2
    assert run() == (0, "") and run("--config.compute.slots=16", "--config.compute.dtype=float32") == (0, "")
    code, said = run("--config.compute.dtype=bfloat16")
    assert code == 2 and "different config" in said and "compute.dtype: wanted 'float32', got 'bfloat16'" in said


def test_a_full_disk_is_one_message(run, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    code, said = run()
    assert code == 2 and "free some space there" in said and "Traceback" not in said


def test_runs_may_lie_where_nothing_can_be_written(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "runs").write_text("a file, no folder")
    code, said = run("--config.method=sft")
    assert code == 2 and "could not write" in said and "runs" in said


def test_a_loss_that_is_not_finite_is_one_message(run):
    code, said = run("--config.method=sft", "--config.weak.learning_rate=1e30", "--config.weak.epochs=4")
    assert code == 2 and "weak: adapter 0 has loss" in said and "Lower the learning rate" in said and "Traceback" not in said


def test_ctrl_c_before_anything_listens_says_the_same(run, monkeypatch):
    monkeypatch.setattr("ilr_jax.hosts.start", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert run() == (130, "stopped; the same command continues\n")


def test_an_interrupted_run_says_how_to_go_on(run, monkeypatch):
    for number, (code, name) in {signal.SIGINT: (130, "Ctrl-C"), signal.SIGTERM: (143, "SIGTERM")}.items():
        monkeypatch.setattr("ilr_jax.rounds.run", lambda *_, number=number: os.kill(os.getpid(), number))
        assert run() == (code, f"stopped by {name}, what was under way begins again; the same command continues\n")


def test_a_traceback_can_be_had(run):
    assert run("--config.dpo.samples=3")[0] == 2
    with pytest.raises(ValueError, match="dpo.samples: wanted an even number"):
        run("--config.dpo.samples=3", "--traceback")


def test_a_faulty_config_file_keeps_its_traceback(run, tmp_path):
    (tmp_path / "mine.py").write_text("from configs import base\ndef get_config():\n    return base.get_confg()\n")
    with pytest.raises(AttributeError, match="get_confg"):
        run(f"--config={tmp_path}/mine.py")


def test_the_process_ends_with_the_code(tmp_path):
    """As `python -m ilr_jax.main`, and as `ilr run`, whose flags come in a list and not through the command line of the process."""
    flags = [f"--config={ROOT}/configs/quickstart.py", f"--workdir={tmp_path}/run", "--config.rouns=2"]
    for command in (["-m", "ilr_jax.main"], ["-c", "import sys; from ilr_jax import cli; sys.exit(cli.main(['run', *sys.argv[1:]]))"]):
        done = subprocess.run([sys.executable, *command, *flags], capture_output=True, text=True, cwd=ROOT, timeout=300)
        assert done.returncode == 2 and 'Did you mean "rounds"' in done.stderr and "Traceback" not in done.stderr


def test_help_tells_what_the_flags_are():
    command = [sys.executable, "-m", "ilr_jax.main", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert "--workdir" in done.stdout and "--config" in done.stdout


def test_ilr_run_returns_the_code(monkeypatch):
    monkeypatch.setattr(main, "run", lambda argv: 2)
    assert cli.main(["run"]) == 2


@pytest.mark.parametrize(("code", "ends"), ((0, "exit"), (2, "_exit"), (130, "_exit"), (143, "_exit")))
def test_a_process_that_failed_or_was_interrupted_ends_on_the_spot(monkeypatch, code, ends):
    """While XLA compiles on threads of its own, the ordinary way out crashes."""

    class Ended(BaseException):
        pass

    def ended(name):
        def end(code):
            raise Ended(name, code)

        return end

    monkeypatch.setattr("os._exit", ended("_exit"))
    monkeypatch.setattr("sys.exit", ended("exit"))
    with pytest.raises(Ended) as seen:
        main.leave(code)
    assert seen.value.args == (ends, code)


@pytest.mark.parametrize(
    ("words", "message"), [([], "--config and --workdir"), (["--workdir=x"], "wanted --config,"), (["--config.seed=1"], "--config")]
)
def test_what_a_command_lacks_is_named(words, message, capsys):
    with flagsaver.flagsaver():
        assert main.run(["ilr run", *words]) == 2
    said = capsys.readouterr().err
    assert message in said and "as in --config=configs/quickstart.py --workdir=runs/mine" in said and said.count("\n") == 1


def test_a_misspelt_flag_is_named_also_where_it_was_one_that_is_lacking(capsys):
    with flagsaver.flagsaver():
        assert main.run(["ilr run", f"--config={ROOT}/configs/quickstart.py", "--wrkdir=runs/mine"]) == 2
    assert "'wrkdir'. Did you mean: workdir" in capsys.readouterr().err


def test_a_gpus_memory_is_taken_but_where_the_environment_says_how_much(monkeypatch):
    for name in platform.SHARES:
        monkeypatch.delenv(name, raising=False)
    platform.take_memory()
    assert os.environ[platform.SHARES[0]] == "0.92" and platform.SHARES[1] not in os.environ
    monkeypatch.delenv(platform.SHARES[0])
    monkeypatch.setenv(platform.SHARES[1], "0.5")
    platform.take_memory()
    assert platform.SHARES[0] not in os.environ
