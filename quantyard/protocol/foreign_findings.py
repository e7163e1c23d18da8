"""What is found of a GGUF that somebody else made of our model: the kinds, their grades, and one finding."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from quantyard.protocol.base import Frozen

# note: worth knowing; warning: it behaves otherwise than the model's own files say; refused: it is not measured.
ForeignGrade = Literal["note", "warning", "refused"]
_MAX_TEXT: Final = 1000

# To add a kind: add a row, kind → its grade, and what it means for a reader of the reference.
FOREIGN_KINDS: Final[Mapping[str, tuple[ForeignGrade, str]]] = {
    "other-architecture": ("refused", "The file names another architecture than our conversion."),
    "missing-tensors": ("refused", "Tensors of our conversion are missing."),
    "other-shapes": ("refused", "Tensors have other shapes than those of our conversion."),
    "other-weights": ("refused", "Tensors differ from the source by more than the rounding of their type."),
    "other-vocabulary": ("refused", "The vocabulary has another length, or more than 1 % other tokens."),
    "damaged-weights": ("refused", "Blocks of weights are NaN or infinite."),
    "unreadable-type": ("refused", "Tensors have a type whose values ggml cannot read."),
    "other-tokens": ("warning", "A few tokens of the vocabulary have other texts."),
    "other-token-kinds": ("warning", "Kinds, scores or merges of tokens differ."),
    "other-special-tokens": ("warning", "BOS, EOS, padding or other special tokens differ."),
    "other-pre-tokenizer": ("warning", "The file names another pre-tokenizer."),
    "other-tokenization": ("warning", "Texts are tokenized otherwise than by the model's own files."),
    "other-template": ("warning", "The chat template renders conversations otherwise than the model's own."),
    "no-template": ("warning", "The model has a chat template, and the file has none."),
    "template-refused": ("warning", "llama.cpp cannot run the file's chat template."),
    "other-rope": ("warning", "Settings of the rotary positions or of the context length differ."),
    "other-hyperparameters": ("warning", "Other settings of the architecture differ."),
    "other-type-than-named": ("warning", "Most weights have another type than the file's name says."),
    "more-tensors": ("warning", "The file has tensors that our conversion does not have."),
    "served-template": ("warning", "Ollama serves the file with a template of its own."),
    "adapter-beside": ("warning", "An adapter lies beside the file, which is measured without it."),
    "template-rewritten": ("note", "The chat template has another text, and renders conversations as the model's own."),
    "output-stored": ("note", "The file stores the output weights that our conversion shares with the embeddings."),
    "imatrix": ("note", "The file was made with an importance matrix."),
}  # fmt: skip


def _foreign_kind(name: str) -> str:
    if name not in FOREIGN_KINDS:
        raise ValueError(f"{name[:40]!r} is not a kind of finding")
    return name


ForeignKind = Annotated[str, Field(max_length=60), AfterValidator(_foreign_kind)]


class ForeignFinding(Frozen):
    """One finding: its kind, and a sentence with its figures."""

    kind: ForeignKind
    text: Annotated[str, Field(max_length=_MAX_TEXT)]

    @property
    def grade(self) -> ForeignGrade:
        """What follows from it."""
        return FOREIGN_KINDS[self.kind][0]


def foreign_finding(kind: str, text: str) -> ForeignFinding:
    """A finding, whose text is cut where it is too long."""
    return ForeignFinding(kind=kind, text=text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…")
