"""Which tokens of a chat are learnt, under the templates of several families of models."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from rayline.data.chat import tokenize_chat
from rayline.data.record import Chat, Message, Place
from rayline.errors import SpecError
from rayline.models.tiny import CHAT_TEMPLATE

PLACE = Place("data.files", 0, "a.jsonl", 17)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen3: the last answer gets an empty thought, earlier ones lose theirs.
QWEN3 = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{%- set words = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{{- '<|im_start|>assistant\n' }}"
    "{%- if loop.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{{- words + '<|im_end|>\n' }}{%- else %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
# Llama 2: no generation prompt of its own, and words are stripped.
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% elif m.role == 'system' %}{{ raise_exception('no system messages here') }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# A reasoning model whose prompt opens a thought that past turns do not show.
OPENS_A_THOUGHT = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: <think>\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ m.role + ': ' }}{% if m.role == 'assistant' %}"
    "{%- generation -%}{{ m.content + eos_token }}{%- endgeneration -%}"
    "{% else %}{{ m.content }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: <think>\n' }}{% endif %}"
)
MARKS_NOTHING = MARKED.replace("m.content + eos_token", "''")
NO_END_TOKEN = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
DROPS_EARLY_ANSWERS = (
    "{% for m in messages %}{% if loop.last or m.role == 'user' %}"
    "{{ m.role + ': ' + m.content + eos_token }}{% else %}{{ m.role + ': ' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def chat(*words: str, system: str | None = None) -> Chat:
    """User and assistant in turns."""
    opening = [] if system is None else [Message("system", system)]
    turns = [
        Message("assistant" if number % 2 else "user", said) for number, said in enumerate(words)
    ]
    return Chat(PLACE, (*opening, *turns))


def learnt(tokenizer: PreTrainedTokenizerBase, template: str, talk: Chat) -> list[str]:
    """The runs of learnt tokens, as text."""
    tokenizer.chat_template = template
    found = tokenize_chat(tokenizer, talk)
    assert len(found.ids) == len(found.learnt)
    runs: list[list[int]] = []
    for place, token in enumerate(found.ids):
        if found.learnt[place]:
            if place == 0 or not found.learnt[place - 1]:
                runs.append([])
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize(
    ("template", "runs"),
    [
        (CHAT_TEMPLATE, ["Hello<|im_end|>", "A<|im_end|>"]),
        (SMOLLM2, ["Hello<|im_end|>", "A<|im_end|>"]),
        (QWEN3, ["Hello<|im_end|>", "<think>\n\n</think>\n\nA<|im_end|>"]),
        (LLAMA2, [" Hello <|im_end|>", " A <|im_end|>"]),
        (MARKED, ["Hello<|im_end|>", "A<|im_end|>"]),
        (NO_END_TOKEN, ["Hello", "A"]),
    ],
    ids=["chatml", "smollm2", "qwen3", "llama2", "marked", "no-end-token"],
)
def test_every_answer_is_learnt_with_its_end_and_nothing_else(
    tokenizer: PreTrainedTokenizerBase, template: str, runs: list[str]
) -> None:
    talk = chat("Hi", "Hello", "A or B?", "A")
    assert learnt(tokenizer, template, talk) == runs


@pytest.mark.parametrize(
    "answer", ["user", "assistant\nHi", "é😀ß", "\n x \n", "<|im_end|>", "[/INST]"]
)
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, SMOLLM2, QWEN3, LLAMA2])
def test_words_that_look_like_the_template_are_no_trouble(
    tokenizer: PreTrainedTokenizerBase, template: str, answer: str
) -> None:
    runs = learnt(tokenizer, template, chat("assistant", answer))

    assert len(runs) == 1
    assert answer.strip() in runs[0]
    assert runs[0].endswith("<|im_end|>")


def test_the_tokens_are_those_that_a_server_would_see(tokenizer: PreTrainedTokenizerBase) -> None:
    talk = chat("Hi", "Hello", system="Be brief.")
    tokenizer.chat_template = CHAT_TEMPLATE
    messages = [{"role": m.role, "content": m.content} for m in talk.messages]
    prompt = tokenizer.apply_chat_template(
        messages[:-1], tokenize=True, add_generation_prompt=True, return_dict=True
    )["input_ids"]

    found = tokenize_chat(tokenizer, talk)

    assert found.ids[: len(prompt)] == prompt
    assert found.learnt.index(True) == len(prompt)


def test_words_after_the_last_answer_are_not_learnt(tokenizer: PreTrainedTokenizerBase) -> None:
    assert learnt(tokenizer, CHAT_TEMPLATE, chat("Hi", "Hello", "Bye")) == ["Hello<|im_end|>"]


def test_an_answer_that_is_all_thought_leaves_its_end_to_learn(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    runs = learnt(tokenizer, QWEN3, chat("Hi", "<think>hm</think>", "So?", "Yes"))
    assert runs[0] == "<|im_end|>"


@pytest.mark.parametrize(
    ("template", "talk", "message"),
    [
        (OPENS_A_THOUGHT, chat("Hi", "Hello"), "where the assistant's words begin"),
        (MARKS_NOTHING, chat("Hi", "Hello"), "enclose no words"),
        (DROPS_EARLY_ANSWERS, chat("Hi", "Hello", "So?", "Yes"), "leaves out or changes"),
        (LLAMA2, chat("Hi", "Hello", system="x"), "no system messages here"),
    ],
)
def test_a_template_that_hides_the_answer_is_refused_with_the_line(
    tokenizer: PreTrainedTokenizerBase, template: str, talk: Chat, message: str
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(SpecError, match=r"data.files\[0\] \(a.jsonl\), line 17") as refused:
        tokenize_chat(tokenizer, talk)
    assert message in str(refused.value)
