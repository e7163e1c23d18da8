"""The forms of the Hub's answers, as far as Quantyard reads them; every field is checked on arrival.

Fields that are not named here are dropped, so that no code can rely on an unchecked field. The names are the Hub's.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError, model_validator

from quantyard.formats.names import shown_name
from quantyard.formats.strict_json import JsonProblem, load_json
from quantyard.network.bounded_http import http_text_without_secret

MAX_FILES: Final = 20_000
_MAX_BYTES: Final = 64 * 1024 * 1024  # the body is bounded already
_LONGEST_WORDS: Final = 300  # characters of what the Hub says about an error

Words = Annotated[str, Field(max_length=1000)]
Path = Annotated[str, Field(min_length=1, max_length=1024)]
RepoName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,96}(?:/[A-Za-z0-9_.-]{1,96})?$")]
Size = Annotated[int, Field(ge=0, le=2**60)]
Number = Annotated[int, Field(ge=0, le=10**9)]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_ADDRESS: Final = re.compile(r"https?://[!-~]{1,8000}")
Address = Annotated[str, Field(pattern=f"^{_ADDRESS.pattern}$")]


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _Blob(_Answer):
    """A file's entry in LFS."""

    size: Size
    sha256: Sha256
    pointerSize: Size = 0  # noqa: N815 - the Hub's name, like those below


class _Sibling(_Answer):
    rfilename: Path
    size: Size | None = None
    blobId: Words | None = None  # noqa: N815
    lfs: _Blob | None = None


class _Safetensors(_Answer):
    parameters: dict[Words, Size]
    total: Size = 0


class HubModel(_Answer):
    """/api/models/<id>/revision/<revision>."""

    id: RepoName
    sha: Words | None = None  # 40 hex digits: checked by `hub_commit`
    private: bool | None = None
    gated: bool | Literal["auto", "manual"] | None = None
    disabled: bool | None = None
    tags: Annotated[list[Words], Field(max_length=10_000)] | None = None
    pipeline_tag: Words | None = None
    cardData: dict[str, JsonValue] | None = None  # noqa: N815 - cleaned by source_card.py
    siblings: Annotated[list[_Sibling], Field(max_length=MAX_FILES)] | None = None
    safetensors: _Safetensors | None = None

    @model_validator(mode="after")
    def _each_file_once(self) -> Self:
        names = [sibling.rfilename for sibling in self.siblings or []]
        if len(set(names)) != len(names):
            raise ValueError("a file is listed twice")
        return self


class _Ref(_Answer):
    name: Path
    ref: Path
    targetCommit: Words  # noqa: N815


class HubRefs(_Answer):
    """/api/models/<id>/refs."""

    branches: Annotated[list[_Ref], Field(max_length=MAX_FILES)]
    tags: Annotated[list[_Ref], Field(max_length=MAX_FILES)] = []
    converts: list[_Ref] = []


class _AccessToken(_Answer):
    role: Words | None = None


class _Auth(_Answer):
    accessToken: _AccessToken = _AccessToken()  # noqa: N815


class HubWhoAmI(_Answer):
    """/api/whoami-v2."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    auth: _Auth = _Auth()


class _Object(_Answer):
    oid: Sha256
    size: Size
    pointerSize: Size = 0  # noqa: N815


class _PathInfo(_Answer):
    type: Literal["file", "directory"]
    path: Path
    size: Size = 0
    oid: Words
    lfs: _Object | None = None


class _Author(_Answer):
    name: Words = "deleted"


class _RepoOf(_Answer):
    name: RepoName
    type: Words


class _Discussion(_Answer):
    title: Words
    num: Number
    author: _Author = _Author()
    status: Words
    isPullRequest: bool  # noqa: N815
    createdAt: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$")]  # noqa: N815
    repo: _RepoOf


class HubDiscussions(_Answer):
    """/api/models/<id>/discussions, one page."""

    discussions: Annotated[list[_Discussion], Field(max_length=1000)]
    count: Number
    start: Number

    @model_validator(mode="after")
    def _goes_on(self) -> Self:
        if not self.discussions and self.start < self.count:
            raise ValueError("an empty page has a next page")
        return self


class _Preupload(_Answer):
    path: Path
    uploadMode: Literal["lfs", "regular"]  # noqa: N815
    shouldIgnore: bool = False  # noqa: N815
    oid: Words | None = None


class HubPreuploads(_Answer):
    """/api/models/<id>/preupload/<revision>."""

    files: Annotated[list[_Preupload], Field(max_length=MAX_FILES)]


class _Action(_Answer):
    href: Address
    header: dict[Words, Annotated[str, Field(max_length=8000)]] | None = None

    @model_validator(mode="after")
    def _has_parts(self) -> Self:
        size = (self.header or {}).get("chunk_size")
        if size is not None and not re.fullmatch(r"[1-9][0-9]{0,14}", size):
            raise ValueError(f"a chunk_size of {shown_name(size)}")
        return self


class _Actions(_Answer):
    upload: _Action | None = None
    verify: _Action | None = None


class _Trouble(_Answer):
    code: Number
    message: Annotated[str, Field(max_length=100_000)]


class _Upload(_Answer):
    oid: Sha256
    size: Size
    actions: _Actions | None = None
    error: _Trouble | None = None


class HubBatch(_Answer):
    """<id>.git/info/lfs/objects/batch."""

    objects: Annotated[list[_Upload], Field(max_length=MAX_FILES)]
    transfer: Words | None = None


class HubCommitted(_Answer):
    """/api/models/<id>/commit/<revision>."""

    commitOid: Commit  # noqa: N815
    commitUrl: Address  # noqa: N815
    pullRequestUrl: Address | None = None  # noqa: N815


class HubCreated(_Answer):
    """/api/repos/create."""

    url: Address


@dataclass(frozen=True)
class _Form:
    """An answer with a known form: `path` matches the whole path, after any prefix of HF_ENDPOINT."""

    methods: str
    path: re.Pattern[str]
    type: TypeAdapter[Any]


def _hub_answer_form(methods: str, path: str, type_: Any) -> _Form:
    return _Form(methods, re.compile(f".*{path}"), TypeAdapter(type_))


_REPO = r"/api/models/[^/]+(?:/[^/]+)?"
# To check one more kind of answer: add a row; the first that fits is taken.
_FORMS: Final = (
    _hub_answer_form("GET", f"{_REPO}/refs", HubRefs),
    _hub_answer_form("POST", f"{_REPO}/paths-info/[^/]+", Annotated[list[_PathInfo], Field(max_length=MAX_FILES)]),
    _hub_answer_form("GET", f"{_REPO}/tree/[^/]+(?:/.*)?", Annotated[list[_PathInfo], Field(max_length=MAX_FILES)]),
    _hub_answer_form("POST", f"{_REPO}/preupload/[^/]+", HubPreuploads),
    _hub_answer_form("POST", f"{_REPO}/commit/[^/]+", HubCommitted),
    _hub_answer_form("GET", f"{_REPO}/discussions", HubDiscussions),
    _hub_answer_form("GET", f"{_REPO}/revision/[^/]+", HubModel),
    _hub_answer_form("GET", f"{_REPO}", HubModel),
    _hub_answer_form("GET", "/api/whoami-v2", HubWhoAmI),
    _hub_answer_form("POST", "/api/repos/create", HubCreated),
    _hub_answer_form("POST", r"\.git/info/lfs/objects/batch", HubBatch),
)


class WrongForm(ValueError):
    """An answer that does not have the Hub's form; the message says what is wrong."""


def checked_hub_answer(method: str, path: str, content: bytes) -> bytes:
    """The answer to a request for this path (still percent-encoded), with checked fields only.

    An answer without a known form is passed on if it is safe JSON, or not JSON at all.

    Raises:
        WrongForm: the answer does not have the expected form.
    """
    form = next((form for form in _FORMS if method in form.methods.split() and form.path.fullmatch(path)), None)
    if form is None and content.lstrip()[:1] not in (b"{", b"["):
        return content
    try:
        value = load_json(content, _MAX_BYTES)
        if form is None:
            return content
        return form.type.dump_json(form.type.validate_python(value), exclude_none=True)
    except ValidationError as error:
        raise WrongForm(_first_hub_answer_fault(error)) from None
    except JsonProblem as error:
        raise WrongForm(f"{error}"[:_LONGEST_WORDS]) from None


def _first_hub_answer_fault(error: ValidationError) -> str:
    """The first field that is wrong, and how."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    what = f"{shown_name(place)}: {first['msg']}" if place else str(first["msg"])
    return what[:_LONGEST_WORDS]


def plain_hub_error(content: bytes, secret: str = "") -> bytes:
    """The body of an error with nothing in it but the Hub's words, cut short and without the secret."""
    try:
        said = load_json(content, _MAX_BYTES)
    except JsonProblem:
        return b"{}"
    if not isinstance(said, dict):
        return b"{}"
    texts = {key: said.get(key) for key in ("error", "error_description")}
    kept: dict[str, Any] = {
        key: http_text_without_secret(secret, text) for key, text in texts.items() if isinstance(text, str)
    }
    kept = {key: cut_hub_text(text) for key, text in kept.items()}
    if isinstance(url := said.get("url"), str) and _ADDRESS.fullmatch(url):
        kept["url"] = url  # of a repo that exists already
    if isinstance(errors := said.get("errors"), list):
        messages = [each.get("message") for each in errors[:10] if isinstance(each, dict)]
        kept["errors"] = [
            {"message": cut_hub_text(http_text_without_secret(secret, each))}
            for each in messages
            if isinstance(each, str)
        ]
    return TypeAdapter(dict[str, Any]).dump_json(kept)


def cut_hub_text(text: str) -> str:
    """Text from others, cut to a readable length."""
    return text if len(text) <= _LONGEST_WORDS else f"{text[:_LONGEST_WORDS]} …"
