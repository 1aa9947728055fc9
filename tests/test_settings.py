"""Values that a config's fields may not have: all of them in one message, before anything is done."""

from typing import get_args

import pytest

from configs import base
from ilr_jax import rounds, settings, tasks
from ilr_jax.models.attention import Implementation
from ilr_jax.models.decoder import Remat
from ilr_jax.refine.select import RULES
from ilr_jax.train.losses import PREFERENCE_LOSSES
from ilr_jax.train.optimizer import TRANSFORMS


def changed(**fields):
    config = base.get_config()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("method", "ilr,sfd", "some of sft, ilr, naive, dpo, sft_chosen, dpo_pairs, weak; got 'sfd'; did you mean 'sft'"),
        ("method", "", "some of sft.*got ''"),
        ("feedback", "evalutor", "one of evaluator, oracle, judge; got 'evalutor'; did you mean 'evaluator'"),
        ("demos", "corect", "did you mean 'correct'"),
        ("alpha_of", "disagree", "did you mean 'disagreeing'"),
        ("task__name", "gsm8", "did you mean 'gsm8k'"),
        ("task__grader", "string", "one of numeric, released; got 'string'"),
        ("task__grader", "official", "numeric, released; got 'official'"),
        ("given", "al", "did you mean 'all'"),
        ("task__answers", "trustd", "did you mean 'trusted'"),
        ("task__grader", "my_graders:judge", "numeric, released; got 'my_graders:judge'"),
        ("sft__normalize", "tokens", "did you mean 'token'"),
        ("decoding__proposals", "beams", "did you mean 'beam'"),
        ("decoding__labels", "samples", "did you mean 'sample'"),
        ("decoding__length_rule", "totl", "did you mean 'total'"),
        ("dpo__scoring", "release", "did you mean 'released'"),
        ("dpo__reference", "bare", "one of previous, base; got 'bare'"),
        *((f"{section}__optimizer", "adam", "did you mean 'adamw'") for section in ("weak", "strong", "evaluator", "dpo")),
        ("judge__kind", "endpoints", "did you mean 'endpoint'"),
        ("judge__top_logprobs", 21, "0 to 20"),
        ("embed__kind", "locale", "did you mean 'local'"),
        ("endpoint__timeout", 0.0, "above 0"),
        ("endpoint__workers", 0, "at least 1"),
        ("compute__dtype", "bfloat", "did you mean 'bfloat16'"),
        ("compute__attention", "flash", "auto, gemm, xla, cudnn"),
        ("compute__remat", "dot", "did you mean 'dots'"),
        ("alpha", 1.5, "0 to 1; got 1.5"),
        ("alpha", float("nan"), "0 to 1; got nan"),
        ("folds", 1, "at least 2; got 1"),
        ("rounds", -1, "at least 0"),
        ("task__test_examples", -5, "at least 0"),
        ("strong__epochs", 0, "at least 1"),
        ("strong__learning_rate", -1e-4, "at least 0"),
        ("sft__batch", 0, "at least 1"),
        ("lora__alpha", 0.0, "a number above 0; got 0.0"),
        ("decoding__top_p", 0.0, "above 0 and at most 1; got 0.0"),
        ("decoding__top_p", 1.5, "above 0 and at most 1; got 1.5"),
        ("decoding__top_k", -1, "at least 0; got -1"),
        ("evaluator__checkpoints", 0, "at least 1"),
        ("evaluator__patience", 0, "at least 1"),
        ("dpo__samples", 5, "an even number"),
        ("dpo__share", 15.0, "0 to 1"),
        ("sharding__fsdp", -1, "at least 0; got -1"),
        ("dpo__loss", "sigmod", "did you mean 'sigmoid'"),
        ("dpo__smoothing", 0.6, "0 to 0.5; got 0.6"),
        ("refine__proposer", "crossed", "did you mean 'cross'"),
        ("refine__pick", "best", "log_prob, feedback"),
        ("refine__rule", "replaces", "did you mean 'replace'"),
        ("refine__samples", 0, "at least 1"),
        ("refine__samples", 4, "wanted 1 with decoding.proposals='beam'"),
        ("demos_error", 0.1, "wanted 0 unless demos='gold'"),
        ("oracle__error", 0.1, "wanted 0 unless feedback='oracle'"),
        ("compute__slots", 4, "compute.slots: wanted at least evaluator.checkpoints=10"),
        ("compute__beam_batch", 1, "compute.beam_batch: wanted at least folds=2"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_what_was_wanted(name, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        settings.check(changed(**{name: value}))
    assert name.split("__")[0] in str(caught.value)


def test_each_task_has_its_own_graders_and_the_first_is_meant_where_none_is_named():
    assert set(tasks.GRADERS) == set(tasks.FACTORIES)
    for name, graders in tasks.GRADERS.items():
        for grader in ("", *graders):
            settings.check(changed(task__name=name, task__grader=grader))
    with pytest.raises(ValueError, match="task.grader: wanted one of official, strict; got 'numeric'"):
        settings.check(changed(task__name="bird", task__grader="numeric"))


def test_all_faults_come_in_one_message():
    with pytest.raises(ValueError) as caught:
        settings.check(changed(feedback="evalutor", folds=0, sft__normalize="tokens"))
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == ["feedback", "sft.normalize", "folds"]


def test_every_task_has_its_own_graders():
    assert settings.check(changed(task__name="jsonl", task__grader="my_graders:judge")) == ["ilr"]
    with pytest.raises(
        ValueError, match="task.grader: wanted one of exact, numeric, regex, sql, sql-strict, module:function; got 'released'"
    ):
        settings.check(changed(task__name="jsonl", task__grader="released"))
    assert tasks.GRADERS.keys() == tasks.FACTORIES.keys()


@pytest.mark.parametrize(
    ("loss", "smoothing", "message"), [("ipo", 0.1, "wanted 0 with dpo.loss='ipo'"), ("robust", 0.5, "wanted less than 0.5")]
)
def test_smoothing_belongs_to_two_losses(loss, smoothing, message):
    settings.check(changed(dpo__loss="robust", dpo__smoothing=0.4))
    with pytest.raises(ValueError, match=message):
        settings.check(changed(dpo__loss=loss, dpo__smoothing=smoothing))


def test_the_table_is_that_of_the_code_and_names_fields_of_the_config():
    assert tuple(rounds.METHODS) == settings.METHODS and tuple(TRANSFORMS) == settings.OPTIMIZERS
    assert settings.CHOICES["compute.attention"] == ("auto", *get_args(Implementation)) and settings.CHOICES["compute.remat"] == get_args(
        Remat
    )
    assert settings.CHOICES["dpo.loss"] == tuple(PREFERENCE_LOSSES) and settings.CHOICES["refine.rule"] == RULES
    config = base.get_config()
    assert settings.check(config) == ["ilr"] and all(settings._value(config, name) is not None for name in settings.BOUNDS)
