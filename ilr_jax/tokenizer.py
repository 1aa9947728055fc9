"""The one tokenisation policy: what text becomes which tokens, for training, sampling and scoring alike.

Prompt and answer are tokenised apart and joined, no BOS anywhere, EOS after every answer (paper appendix; the released code puts a BOS into
sampling and scoring but not into training); or the prompt is the model's own chat template, which says what comes before it and what ends
an answer. Nothing else in the project builds model text.
"""

import os
import re
from collections.abc import Iterable, Sequence
from math import inf
from pathlib import Path
from typing import Literal

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch, at every start
from jinja2 import TemplateError  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from ilr_jax.models.config import ModelConfig  # noqa: E402

PROMPT = "USER:\n{question}\n\nASSISTANT:\n"
DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"  # of all days, for templates that ask: prompts must not change overnight
OTHERWISE = "use a model that comes with one, or template='plain'"
TURN = re.compile(r"\n\n(ASSISTANT|USER):\n")  # begins every turn of a dialogue but the first, the user's
COMPARISON = (
    "USER:\n{question}\n\nANSWER (A):\n{a}\n\nANSWER (B):\n{b}\n\n"
    "The holder of answer (A) is asked to change to answer (B). Does the holder accept?\n\nVERDICT:"
)
JUDGED = "The better answer is:\n"  # what a model that judges goes on from
FILES = ("tokenizer.json", "tokenizer.model")  # without one, transformers makes up a tokenizer of a handful of entries


def turns(question: str) -> list[dict[str, str]]:
    """A question as messages: what `tasks.shapes.render` made one text of, or one turn of the user where it reads as no dialogue."""
    first, *rest = TURN.split(question)
    names = [name.lower() for name in rest[::2]]
    if names != ["assistant", "user"] * (len(names) // 2):
        return [{"role": "user", "content": question}]
    return [{"role": role, "content": said} for role, said in zip(["user", *names], [first, *rest[1::2]], strict=True)]


class Tokenizer:
    """A Hugging Face tokenizer behind the policy, checked against the model that reads its ids; a prompt is put plain, or as a chat."""

    def __init__(self, folder: str | Path, config: ModelConfig, template: Literal["plain", "chat"] = "plain"):
        self.config, self.folder, self.chat_template = config, folder, ""
        if not any((Path(folder) / name).is_file() for name in FILES):
            raise ValueError(
                f"{folder}: wanted {' or '.join(FILES)} there, found neither; copy the files of the model's tokenizer beside its weights"
            )
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(folder))
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder}: its tokenizer cannot be loaded; replace the model's tokenizer.json\n  {error}") from error
        if len(self._tokenizer) > config.vocab_size:
            raise ValueError(
                f"{folder}: the tokenizer has {len(self._tokenizer)} entries but the model's embedding only {config.vocab_size}: "
                "they belong to different models; use the tokenizer that came with the weights"
            )
        eos = config.eos_token_ids[0] if config.eos_token_ids else self._tokenizer.eos_token_id
        if eos is None:
            raise ValueError(f"{folder}: neither config.json nor the tokenizer names an EOS token: set eos_token_id in config.json")
        self.eos: int = eos
        self.stops: tuple[int, ...] = config.eos_token_ids or (eos,)
        # Masks are data, so the pad id is only a filler: EOS serves where there is none.
        self.pad: int = config.pad_token_id if config.pad_token_id is not None else eos
        if template == "chat":
            self._chat()

    def _chat(self) -> None:
        """Take from the model's chat template how prompts are put, and the token that ends an answer. ValueError where it does not say."""
        try:
            self._tokenizer.chat_template = self.chat_template = DATE + self._tokenizer.get_chat_template()
        except ValueError as error:
            raise ValueError(f"{self.folder}: wanted a chat template, got none; {OTHERWISE}\n  {error}") from error
        asked = {"role": "user", "content": "question"}
        (prompt,), (whole,) = self._rendered([[asked]]), self._rendered([[asked, {"role": "assistant", "content": "answer"}]], False)
        behind, special = whole[len(prompt) :], set(self._tokenizer.all_special_ids)
        said = next((i for i in range(len(behind)) if "answer" in self.decode(behind[:i])), 0)
        ends = [token for token in behind[said:] if token in special]
        if whole[: len(prompt)] != prompt or special.intersection(behind[:said]) or not ends:
            raise ValueError(
                f"{self.folder}: wanted a chat template that puts an answer right behind the prompt and ends it with a special token, got "
                f"{self._tokenizer.decode(prompt)!r} and {self._tokenizer.decode(whole)!r}; {OTHERWISE}"
            )
        self.eos = ends[0]
        self.stops = tuple(dict.fromkeys([self.eos, *self.stops]))

    def _rendered(self, dialogues: Sequence[list[dict[str, str]]], open_ended: bool = True) -> list[list[int]]:
        """Ids of dialogues in the model's chat template; what a turn says makes no control token. ValueError for one it does not take."""
        found = []
        for dialogue in dialogues:
            try:
                found += self._tokenizer.apply_chat_template(
                    [dialogue], add_generation_prompt=open_ended, sanitize_control_tokens=True, return_dict=False
                )
            except (TemplateError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{self.folder}: its chat template does not take {len(dialogue)} turns that begin {dialogue[0]['content'][:80]!r}; "
                    f"drop it, or {OTHERWISE}\n  {error}"
                ) from error
        return found

    def _asked(self, questions: Sequence[str]) -> list[list[int]]:
        """Ids of each question as it is asked, up to where the answer begins."""
        if self.chat_template:
            return self._rendered([turns(question) for question in questions])
        return self.encode([PROMPT.format(question=question) for question in questions])

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special tokens: a text that spells one out is tokenised like any other text."""
        return self._tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"] if texts else []

    def prompts(self, questions: Sequence[str], room: int = 1) -> list[list[int]]:
        """Ids of each question as it is asked; `room` tokens must still fit behind it, else ValueError."""
        return self._fitting(self._asked(questions), questions, room)

    def lengths(self, questions: Sequence[str]) -> list[int]:
        """Tokens of each question as it is asked, whether they fit or not."""
        return [len(ids) for ids in self._asked(questions)]

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each answer, EOS included."""
        return [[*ids, self.eos] for ids in self.encode(texts)]

    def comparisons(self, requests: Sequence[tuple[str, str, str]], room: int | None = 0) -> list[list[int]]:
        """Ids of the evaluator's prompt for each (question, answer A, answer B)."""
        texts = [COMPARISON.format(question=q, a=a, b=b) for q, a, b in requests]
        return self._fitting(self.encode(texts), [q for q, _, _ in requests], room)

    def judgements(self, texts: Sequence[str], room: int | None = 1) -> list[list[int]]:
        """Ids of each text put as a question of one turn, up to where a letter is to follow (`JUDGED`)."""
        if self.chat_template:
            (begun,) = self.encode([JUDGED])
            asked = [ids + begun for ids in self._rendered([[{"role": "user", "content": text}] for text in texts])]
        else:
            asked = self.encode([PROMPT.format(question=text) + JUDGED for text in texts])
        return self._fitting(asked, texts, room)

    def letters(self, letters: Sequence[str]) -> list[int]:
        """The first token of each letter where it begins an answer's text. ValueError if two of them begin alike."""
        first = [ids[0] if ids else self.eos for ids in self.encode(letters)]
        if len(set(first)) < len(first):
            raise ValueError(f"wanted a tokenizer that tells {' from '.join(letters)}, got the same first token; choose another model")
        return first

    def decode(self, ids: Iterable[int]) -> str:
        """The text of sampled ids (stop token already removed)."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _fitting(self, rows: list[list[int]], questions: Sequence[str], room: int | None) -> list[list[int]]:
        """The rows, if behind each there is room for so many tokens in the context, else ValueError; None: unchecked."""
        limit = inf if room is None else self.config.context - room
        for ids, question in zip(rows, questions, strict=True):
            if len(ids) > limit:
                raise ValueError(
                    f"a prompt of {len(ids)} tokens does not fit: the model's context is {self.config.context} tokens, {room} of them kept "
                    f"for the answer; the question begins {question[:80]!r}. Shorten or drop it, or use a model with a longer context"
                )
        return rows
