"""Conversations that are given as a whole, as parts of a prompt."""

from dataclasses import replace

import pytest

from fastvlm_onnx import FastVLM, InputError
from fastvlm_onnx.runtime.text.prompt import (
    ImagePlace,
    Message,
    PromptPart,
    PromptTemplate,
    question,
)


@pytest.fixture(scope="module")
def template(model: FastVLM) -> PromptTemplate:
    return model.template


def text_of(template: PromptTemplate, parts: list[PromptPart]) -> str:
    """A prompt's text with special tokens as `|` and images as `[index]`."""
    return "".join(
        f"[{part.index}]"
        if isinstance(part, ImagePlace)
        else "".join(template.tokenizer.decode([token]) or "|" for token in part)
        for part in parts
    )


def user(*content: str | ImagePlace) -> Message:
    return Message("user", content)


def test_a_conversation_of_one_question_is_the_question_itself(template: PromptTemplate) -> None:
    asked = template.prompt(question("What is it?", num_images=1))
    assert template.conversation([user(ImagePlace(0), "What is it?")]) == asked


def test_a_conversation_has_a_turn_for_each_message(template: PromptTemplate) -> None:
    parts = template.conversation(
        [user(ImagePlace(0), "What?"), Message("assistant", ["A dog."]), user("Old?")]
    )
    assert text_of(template, parts).endswith(
        "|user\n[0]\nWhat?|\n|assistant\nA dog.|\n|user\nOld?|\n|assistant\n"
    )


def test_a_system_message_takes_the_place_of_the_templates_own(template: PromptTemplate) -> None:
    parts = template.conversation([Message("system", ["Be brief."]), user("What?")])
    assert text_of(template, parts) == "|system\nBe brief.|\n|user\nWhat?|\n|assistant\n"


def test_a_system_message_without_a_system_turn_comes_before_the_question(
    template: PromptTemplate,
) -> None:
    bare = PromptTemplate(template.tokenizer, replace(template.text, system=""))
    parts = bare.conversation([Message("system", ["Be brief."]), user("What?")])
    assert text_of(bare, parts) == "|user\nBe brief.\n\nWhat?|\n|assistant\n"


def test_a_template_without_turns_takes_one_question_alone(template: PromptTemplate) -> None:
    bare = PromptTemplate(template.tokenizer, replace(template.text, end_of_turn=""))
    assert bare.conversation([user("What?")])
    with pytest.raises(InputError, match="has no turns"):
        bare.conversation([user("What?"), Message("assistant", ["A dog."]), user("Old?")])


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no message is the user's"),
        ([Message("system", ["Be brief."])], "no message is the user's"),
        ([user("What?"), Message("assistant", [ImagePlace(0)])], "role assistant has an image"),
        ([user("\ud800")], "unpaired surrogate"),
    ],
)
def test_a_conversation_that_cannot_be_asked_is_refused(
    template: PromptTemplate, messages: list[Message], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        template.conversation(messages)
