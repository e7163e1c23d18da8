"""What `convert` records of a model's own tokenizer and chat template, for `verify`."""

from pydantic import Field

from quantyard.protocol.base import Frozen


class ChatReference(Frozen):
    """One conversation and the text the Hugging Face template renders it to."""

    name: str
    messages: list[dict[str, str]]
    text: str


class AddedToken(Frozen):
    """A token that was added to the vocabulary, with its flags as the `tokenizers` library has them."""

    id: int
    content: str
    special: bool
    lstrip: bool
    rstrip: bool
    single_word: bool
    normalized: bool


class ProbeBatch(Frozen):
    """Probes, one for each of these tokens, their token ids, and those of all of them as one text, a probe a line.

    Attributes:
        apart_ids: of each probe, the ids if each stretch between added tokens is tokenized as a text of its own, which
            begins with a space in some tokenizers; None where these are the same.
        joined_apart_ids: the same of the one text.
    """

    tokens: list[str]
    texts: list[str]
    ids: list[list[int]]
    joined_ids: list[int]
    apart_ids: list[list[int] | None] = Field(default_factory=list)
    joined_apart_ids: list[int] | None = None


class Passage(Frozen):
    """Running text in one script (or code), and its token ids."""

    name: str
    script: str
    text: str
    ids: list[int]


class Reference(Frozen):
    """What the model's own files say; `verify` holds every GGUF of the model against it.

    Attributes:
        witness: the file, or the class, that the ids are from, with its library.
        disagreements: what other witnesses answer otherwise, a sentence each.
    """

    tokenizer_class: str
    witness: str
    disagreements: list[str]
    bos_token: str | None
    probe_ids: dict[str, list[int]]  # probe text → token ids, special tokens parsed, none added
    probe_ids_with_special: dict[str, list[int]]  # a few of them with BOS/EOS added as the tokenizer does
    passages: list[Passage]
    added_tokens: list[AddedToken]
    added_batches: list[ProbeBatch]
    chat_template: bool
    chats: list[ChatReference]
    refused_chats: dict[str, str]  # conversation name → why the template itself refuses it
