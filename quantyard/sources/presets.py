"""Presets: models people ask for, by a short name. The list is `models.toml`, headed by how to add one.

    find_preset("PHI-2")              # the preset, in any case; also by its repo's own name
    split_preset_name("phi-2@main")   # ("phi-2", "main"): a preset's name may carry a revision like a repo id

MODEL is a preset's name if it has no slash and is not a file or folder.
"""

import difflib
import tomllib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from quantyard.errors import BadRequest, BadSource, UnsupportedModel
from quantyard.paths import REPO_DIR
from quantyard.protocol.text_findings import KINDS, SCRIPT, MismatchKind

FILE: Final = REPO_DIR / "models.toml"
LATEST: Final = "latest"
LIST_THEM: Final = "List them: make models"
_NEAREST: Final = 3
_LONGEST: Final = 200  # characters of a sentence, which must fit one line of the plan


def _preset_sentence(text: str) -> str:
    if not (text[:1].isupper() and text.endswith((".", "!", "?")) and "\n" not in text and len(text) <= _LONGEST):
        raise ValueError(f"{text!r} is not a sentence of one line, at most {_LONGEST} characters")
    return text


_Sentence = Annotated[str, AfterValidator(_preset_sentence)]


class Preset(BaseModel):
    """One model of the list.

    Attributes:
        repo: on the Hub, `org/name`.
        commit: 40 hex digits, or "latest": the commit of the Hub's main branch when the build starts.
        n_params: number of weights in the GGUF, without any picture encoder.
        architecture: the first of `architectures` in its config.json, which the converter goes by.
        licence: the Hub's identifier, or a name that `licence.py` knows.
        licence_note: terms beyond the identifier; "" if there are none.
        gated: whether the Hub wants its terms accepted first.
        quants: the recommended matrix, largest first; each works without an importance matrix.
        reason: why these quants.
        caveats: what to know before using it; chat template, stop tokens, what does not work.
        differs: the kinds of texts that llama.cpp tokenizes otherwise, as `verify` finds them; None: not compared.
        gguf_file: which file of a repo of ready-made GGUFs.
        unsupported: why llama.cpp cannot convert it; "" if it can.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    repo: Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$")]
    commit: Annotated[str, StringConstraints(pattern=r"^(latest|[0-9a-f]{40})$")] = LATEST
    n_params: Annotated[int, Field(gt=0, strict=True)]
    architecture: Annotated[str, StringConstraints(pattern=r"^\w+$")]
    licence: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.+_-]*$")]
    licence_note: _Sentence | None = None
    gated: Annotated[bool, Field(strict=True)] = False
    quants: tuple[str, ...] = ()
    reason: _Sentence | None = None
    caveats: tuple[_Sentence, ...] = ()
    differs: tuple[MismatchKind, ...] | None = None
    gguf_file: Annotated[str, StringConstraints(pattern=r"\.gguf$")] | None = None
    unsupported: _Sentence | None = None

    @model_validator(mode="after")
    def _recommends_what_can_be_made(self) -> Self:
        if bool(self.unsupported) == bool(self.quants):
            raise ValueError("give either `quants`, or `unsupported` with the reason")
        if bool(self.quants) != bool(self.reason):
            raise ValueError("give `quants` and `reason` together")
        return self

    @property
    def revision(self) -> str | None:
        """What to ask the Hub for; None is its main branch."""
        return None if self.commit == LATEST else self.commit

    @property
    def licence_text(self) -> str:
        """The licence, and whether the repo is gated, in a few words."""
        return f"{self.licence}, gated" if self.gated else self.licence

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know before using it: its caveats, and what llama.cpp tokenizes otherwise."""
        return (*self.caveats, self._differs_text()) if self.differs else self.caveats

    def _differs_text(self) -> str:
        kinds = self.differs or ()
        scripts = ", ".join(kind.removeprefix(SCRIPT) for kind in kinds if kind.startswith(SCRIPT))
        texts = [KINDS[kind] for kind in kinds if kind in KINDS] + ([f"text in {scripts}"] if scripts else [])
        follows = "which the card warns of" if scripts else "which is recorded"
        return f"llama.cpp tokenizes otherwise, {follows}: {'; '.join(texts)}."

    @property
    def names(self) -> tuple[str, str]:
        """The names it is found by, in lower case: its own, and its repo's without the organisation."""
        return self.name.lower(), self.repo.partition("/")[2].lower()


def read_presets(path: Path) -> tuple[Preset, ...]:
    """The models of a file, in its order.

    Raises:
        BadRequest: it cannot be read; the message names the model and the field.
    """
    hint = f"See the first lines of {path.name} for the format."
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadRequest(f"{path.name} cannot be read: {error}", hint) from error
    found = tuple(_preset_of_table(name, table, path, hint) for name, table in tables.items())
    _refuse_double_presets(found, path, hint)
    return found


@cache
def shipped_presets() -> tuple[Preset, ...]:
    """The models of `models.toml`, read once."""
    return read_presets(FILE)


def split_preset_name(model: str) -> tuple[str, str | None]:
    """`name[@revision]` in its two parts."""
    name, at, revision = model.partition("@")
    return name, revision if at else None


def find_preset(name: str, among: Sequence[Preset] | None = None) -> Preset:
    """The preset of this name, in any case.

    Args:
        among: where to look; by default in `models.toml`.

    Raises:
        BadSource: no preset has this name; the message suggests similar ones.
    """
    known = shipped_presets() if among is None else among
    wanted = name.strip().lower()
    found = next((preset for preset in known if wanted in preset.names), None)
    if found is None:
        near = _nearest_presets(wanted, known)
        advice = f" Did you mean {' or '.join(near)}?" if near else ""
        message = f"{name!r} is not a model folder, a file or a preset.{advice}"
        raise BadSource(message, f"{LIST_THEM}; or type org/name: make build MODEL=org/name")
    return found


def refuse_unsupported_preset(preset: Preset) -> None:
    """Refuse a model that llama.cpp cannot convert, before a byte is downloaded.

    Raises:
        UnsupportedModel: llama.cpp cannot convert it.
    """
    if preset.unsupported:
        message = f"{preset.name} ({preset.repo}) cannot be built: {preset.unsupported}"
        raise UnsupportedModel(message, f"Choose another model. {LIST_THEM}")


def _preset_of_table(name: str, table: object, path: Path, hint: str) -> Preset:
    if not isinstance(table, dict):
        raise BadRequest(f"{path.name}: {name} stands outside a table.", hint)
    try:
        return Preset.model_validate({"name": name, **table})
    except ValidationError as error:
        first = error.errors()[0]
        where = " ".join(str(part) for part in (name, *first["loc"]))
        what = first["msg"].removeprefix("Value error, ")
        raise BadRequest(f"{path.name}: {where}: {what}.", hint) from error


def _refuse_double_presets(found: Iterable[Preset], path: Path, hint: str) -> None:
    owners: dict[str, str] = {}
    for preset in found:
        for name in set(preset.names):
            if name in owners:
                raise BadRequest(f"{path.name}: {owners[name]} and {preset.name} share the name {name}.", hint)
            owners[name] = preset.name


def _nearest_presets(wanted: str, known: Sequence[Preset]) -> list[str]:
    """The names that contain what was typed, else the most similar ones; three at most."""
    by_name = {preset.name.lower(): preset.name for preset in known}
    holding = [shown for name, shown in by_name.items() if wanted and wanted in name]
    similar = [by_name[name] for name in difflib.get_close_matches(wanted, by_name, n=_NEAREST, cutoff=0.5)]
    return list(dict.fromkeys([*similar, *holding]))[:_NEAREST]
