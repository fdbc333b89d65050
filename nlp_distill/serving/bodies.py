"""What predictions take and give, by task: the shapes of transformers' pipelines as pydantic models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from nlp_distill.web.text import Text

MOST_INPUTS = 64
MOST_CHARACTERS = 100_000
Words = Annotated[Text, Field(max_length=MOST_CHARACTERS, description="A text.")]
Given = Annotated[Text, Field(min_length=1, max_length=MOST_CHARACTERS, description="A text, not empty.")]


def _no(value: bool) -> bool:
    if value:
        raise ValueError("it may only be false")
    return value


No = Annotated[bool, AfterValidator(_no), WithJsonSchema({"type": "boolean", "const": False})]
"""What some clients always send; to `Literal[False]` a 0 would be no different."""


class Strict(BaseModel):
    """Nothing that the API does not know, and no conversions: "1" is no number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Pair(Strict):
    """Two texts that a classifier reads together."""

    text: Words
    text_pair: Words | None = None


class Question(Strict):
    """A question, and the text that holds its answer."""

    question: Given
    context: Given


class NoParameters(Strict):
    """There are none."""


class ClassificationParameters(Strict):
    """Of `pipeline("text-classification")`."""

    top_k: int | None = Field(None, ge=1, le=100_000, description="How many labels; null: all; not given: the best.")
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = Field(
        None, description="What scores are made with; unset: as the model's problem asks."
    )


class AnsweringParameters(Strict):
    """Of `pipeline("question-answering")`."""

    top_k: int | None = Field(None, ge=1, le=100, description="How many answers.")
    doc_stride: int | None = Field(None, ge=0, le=1024, description="Tokens that neighbouring windows share.")
    max_answer_len: int | None = Field(None, ge=1, le=1024, description="Longest answer, in tokens.")
    max_seq_len: int | None = Field(None, ge=32, le=1024, description="Tokens of a window, within the model's limit.")
    max_question_len: int | None = Field(None, ge=1, le=1024, description="Changes nothing, as in the pipeline.")
    handle_impossible_answer: bool | None = Field(None, description="Whether there may be no answer.")
    align_to_words: bool | None = Field(None, description="Whether answers are widened to whole words.")


class GenerateParameters(Strict):
    """Of `generate`."""

    max_new_tokens: int | None = Field(None, ge=1, le=512, description="Longest answer, in tokens.")
    min_new_tokens: int | None = Field(None, ge=0, le=512, description="Shortest answer, in tokens.")
    num_beams: int | None = Field(None, ge=1, le=8, description="Beams of the search.")
    num_return_sequences: int | None = Field(None, ge=1, le=8, description="Answers, at most one a beam.")
    do_sample: bool | None = Field(None, description="Whether tokens are drawn.")
    temperature: float | None = Field(None, gt=0, le=100, description="Above 1 draws more evenly.")
    top_k: int | None = Field(None, ge=1, le=1000, description="Tokens to draw from.")
    top_p: float | None = Field(None, gt=0, le=1, description="Share of probability to draw from.")
    repetition_penalty: float | None = Field(None, gt=0, le=10, description="Above 1 repeats less.")
    length_penalty: float | None = Field(None, ge=-10, le=10, description="Above 0 favours longer answers of beams.")
    no_repeat_ngram_size: int | None = Field(None, ge=0, le=100, description="No run of so many tokens comes twice.")


class GenerationParameters(GenerateParameters):
    """Of `pipeline("text2text-generation")`, as `huggingface_hub.InferenceClient` sends them."""

    clean_up_tokenization_spaces: bool | None = Field(None, description="Whether blanks before points are removed.")
    truncation: bool | None = Field(None, description="Whether long texts are cut; unset: they are.")
    generate_parameters: GenerateParameters | None = Field(None, description="The same, one level down.")
    details: No | None = Field(None, description="There are none.")
    decoder_input_details: No | None = Field(None, description="There are none.")
    return_full_text: No | None = Field(None, description="Changes nothing: answers do not repeat texts.")
    watermark: No | None = Field(None, description="There is none.")


class MaskParameters(Strict):
    """Of `pipeline("fill-mask")`."""

    top_k: int | None = Field(None, ge=1, le=1000, description="How many tokens.")


class Body(Strict):
    """What every prediction takes."""

    stream: No = Field(False, description="Answers come whole; clients that ask for it may say so.")


class ClassificationBody(Body):
    """Texts or pairs to classify."""

    inputs: Words | Pair | Annotated[list[Words | Pair], Field(min_length=1, max_length=MOST_INPUTS)]
    parameters: ClassificationParameters = Field(default_factory=ClassificationParameters)


class AnsweringBody(Body):
    """Questions to answer."""

    inputs: Question | Annotated[list[Question], Field(min_length=1, max_length=MOST_INPUTS)]
    parameters: AnsweringParameters = Field(default_factory=AnsweringParameters)


class GenerationBody(Body):
    """Texts to rewrite."""

    inputs: Words | Annotated[list[Words], Field(min_length=1, max_length=MOST_INPUTS)]
    parameters: GenerationParameters = Field(default_factory=GenerationParameters)


class MaskBody(Body):
    """Texts that hide words."""

    inputs: Given | Annotated[list[Given], Field(min_length=1, max_length=MOST_INPUTS)]
    parameters: MaskParameters = Field(default_factory=MaskParameters)


class OtherBody(Body):
    """Texts for the pipeline of a task of others."""

    inputs: Given | Annotated[list[Given], Field(min_length=1, max_length=MOST_INPUTS)]
    parameters: NoParameters = Field(default_factory=NoParameters)


class Label(BaseModel):
    """A label and its score."""

    label: str
    score: float


class Span(BaseModel):
    """An answer, its score, and where it stands in the context, in characters."""

    score: float
    start: int
    end: int
    answer: str


class Generated(BaseModel):
    """A text."""

    generated_text: str


MASK = "[MASK]"
MOST_LABELS = 6
"""Labels that are shown to whoever tries a model."""


@dataclass(frozen=True)
class Kind:
    """What a task takes and gives. `unset`: whether a parameter that is null says something else than none; `joined`:
    inputs of a text and what stands beside it, which may be empty; `tried`: parameters of whoever tries a model; `text`
    and `beside`: what a form calls the two, `beside_needed` where it is not for pairs alone.
    """

    body: type[Body]
    response: Any
    example: Any
    unset: bool = False
    joined: Callable[[str, str], Any] = lambda text, beside: text
    tried: Mapping[str, Any] = field(default_factory=dict)
    text: str = "Text"
    beside: str = ""
    beside_needed: bool = False


KINDS = {
    "classification": Kind(
        ClassificationBody,
        list[Label] | Label | list[list[Label]],
        "A film that one sees twice.",
        unset=True,
        joined=lambda text, beside: {"text": text, "text_pair": beside} if beside else text,
        tried={"top_k": MOST_LABELS},
        beside="Second text",
    ),
    "question_answering": Kind(
        AnsweringBody,
        Span | list[Span] | list[Span | list[Span]],
        {"question": "Who wrote it?", "context": "Jane wrote it in 1811."},
        joined=lambda text, beside: {"question": beside, "context": text},
        text="Context",
        beside="Question",
        beside_needed=True,
    ),
    "seq2seq": Kind(GenerationBody, list[Generated] | list[list[Generated]], "A text to rewrite."),
    "masked_lm": Kind(MaskBody, list[Any], f"The capital of France is {MASK}."),
    "other": Kind(OtherBody, Any, "A text."),
}


def kind_of(task: str) -> Kind:
    """A task's kind; those of others take texts."""
    return KINDS.get(task, KINDS["other"])


def example_of(task: str, folder: Path) -> Any:
    """Inputs to try on a model, with the mask that its tokenizer has."""
    example, file = kind_of(task).example, folder / "special_tokens_map.json"
    if MASK in example and file.is_file():
        mask = json.loads(file.read_text(encoding="utf-8")).get("mask_token", MASK)
        return example.replace(MASK, mask["content"] if isinstance(mask, dict) else mask)
    return example


def asked(kind: Kind, body: Any) -> tuple[Any, dict[str, Any], int]:
    """What a pipeline is called with: inputs, parameters; and how many rows that is."""
    inputs = body.inputs
    rows = inputs if isinstance(inputs, list) else [inputs]
    plain = [row.model_dump(exclude_none=True) if isinstance(row, BaseModel) else row for row in rows]
    parameters = body.parameters.model_dump(exclude_unset=kind.unset, exclude_none=not kind.unset)
    parameters |= parameters.pop("generate_parameters", {})
    for name in ("details", "decoder_input_details", "return_full_text", "watermark"):
        parameters.pop(name, None)
    return plain if isinstance(inputs, list) else plain[0], parameters, len(rows)
