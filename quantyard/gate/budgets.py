"""Budgets: the limits that a file must meet to be published. docs/explanation/gate.md explains those of `default.yaml`.

    budgets = load_gate_budgets(None)               # the default budgets
    budgets = load_gate_budgets(Path("gate.yaml"))  # replaces the default budgets entirely
    budgets.of("Q4_K_M").max_mean_kld

A file holds `defaults:` and, under `quants:`, what differs for a family ("4-bit"), for names that a pattern matches
("IQ4*") or for one quant ("Q4_K_M"). A more specific entry overrides a less specific one, budget by budget: defaults,
the family, patterns (by the number of their letters), the name. `null` removes a budget.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, ByteSize, Discriminator, Field, Tag, ValidationError

from quantyard.errors import BadRequest, UnknownQuant
from quantyard.formats.strict_yaml import MAX_BYTES, YamlProblem, load_strict_yaml
from quantyard.metrics.budget_figures import BUDGET_NAMES
from quantyard.protocol.base import Frozen
from quantyard.protocol.behaviour import BEHAVIOUR_NAMES
from quantyard.quants.catalog import FAMILIES, QUANTS, find_quant, nearest_quant_name, quant_family

DEFAULT: Final = Path(__file__).parent / "default.yaml"
TEXT: Final = "text"  # the key of the limit on the suite's text, which a plain number is, beside those of domains
_SIZE: Final = re.compile(r"\d+(\.\d+)?\s*([kmgtp]i?)?b?", re.IGNORECASE)
_NO_LIMITS: Final = frozenset({"confidence", "only_if_measured"})  # keys that set no limit
_HELP: Final = "docs/how-to/gate.md shows a file that works."


class BadBudgets(BadRequest):
    """The file of budgets does not exist or is not valid."""

    kind = "bad-budgets"


def _budget_size(value: Any) -> Any:
    if isinstance(value, str) and not _SIZE.fullmatch(value.strip()):  # ByteSize alone takes "5,000" for 5 bytes
        raise ValueError("write it like 5GB, 4GiB, or in bytes")
    return value


def _budget_per_task(value: Any) -> Any:
    return {"*": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


_AtLeast0 = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_NUMBER, _BY_DOMAIN = "a number", "by domain"  # tags, which pydantic adds to the place of an error
_KldLimits = Annotated[
    Annotated[_AtLeast0, Tag(_NUMBER)] | Annotated[dict[str, _AtLeast0], Tag(_BY_DOMAIN)],
    Discriminator(lambda value: _BY_DOMAIN if isinstance(value, dict) else _NUMBER),
]
_Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Points = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


def _known_behaviours(value: dict[str, float] | None) -> dict[str, float] | None:
    for pattern in value or ():
        if not any(fnmatchcase(name, pattern) for name in BEHAVIOUR_NAMES):
            raise ValueError(f"{pattern[:80]!r} is not a behaviour: {', '.join(BEHAVIOUR_NAMES)}")
    return value


def _known_budgets(value: tuple[str, ...]) -> tuple[str, ...]:
    for name in value:
        if name not in BUDGET_NAMES:
            near = difflib.get_close_matches(name, BUDGET_NAMES, n=1, cutoff=0.5)
            raise ValueError(f"{name[:80]!r} is not a budget.{f' Did you mean {near[0]!r}?' if near else ''}")
    return value


_BehaviourPoints = Annotated[
    dict[str, _Points] | None, BeforeValidator(_budget_per_task), AfterValidator(_known_behaviours)
]


class GateBudget(Frozen):
    """The budgets of one file; `None` means no limit. To add one: add a field here and a row to `_JUDGES` in judge.py.

    `max_accuracy_loss` maps the name of a task, or a pattern of names, to points; the most specific entry applies. The
    four of behaviours do so with the names of behaviours. `max_mean_kld` maps the name of a domain, or a pattern, to
    nats; "worst" is whichever domain is worst.
    """

    confidence: Annotated[float, Field(ge=0.5, le=0.9999)] = 0.95  # of every interval that is compared with a budget
    max_ppl_change: _AtLeast0 | None = None  # per cent
    # Nats per token: of the suite's text, or the limit of each domain, of the "worst" and of the "text".
    max_mean_kld: _KldLimits | None = None
    max_accuracy_loss: Annotated[dict[str, _Points] | None, BeforeValidator(_budget_per_task)] = None
    # Divergence from f16 of each type of the KV cache, nats per token: `{q8_0: 0.01}`; a number is for every type.
    max_cache_kld: Annotated[dict[str, _AtLeast0] | None, BeforeValidator(_budget_per_task)] = None
    max_behaviour_loss: _BehaviourPoints = None
    max_length_increase: Annotated[
        dict[str, _AtLeast0] | None, BeforeValidator(_budget_per_task), AfterValidator(_known_behaviours)
    ] = None  # per cent of the baseline's mean answer
    max_unfinished_increase: _BehaviourPoints = None
    max_loops_increase: _BehaviourPoints = None
    min_generated_tokens_per_s: _Above0 | None = None
    min_prompt_tokens_per_s: _Above0 | None = None
    max_size: Annotated[ByteSize, BeforeValidator(_budget_size), Field(gt=0)] | None = None  # bytes, or "5GB", "4GiB"
    min_schema_conformance: Annotated[float, Field(ge=0, le=1)] | None = None  # share of the API test's answers
    # Length of text up to which llama.cpp computes what Transformers does. Named once: all files share the formula.
    min_same_tokens: Annotated[int, Field(ge=1)] | None = None
    # Names of budgets: what the suite does not measure of these is said and does not count.
    only_if_measured: Annotated[tuple[str, ...], AfterValidator(_known_budgets)] = ()


class _BudgetFile(Frozen):
    defaults: GateBudget = GateBudget()
    quants: dict[str, GateBudget] = {}  # noqa: RUF012  (pydantic copies it)


@dataclass(frozen=True)
class GateBudgets:
    """A file of budgets. `name` is "default" or the file's; `sha256` is of its text, so that two can be told apart."""

    name: str
    sha256: str
    defaults: GateBudget
    quants: dict[str, GateBudget]  # by family, pattern or name, as in the file

    def of(self, quant: str) -> GateBudget:
        """The budget of this quant."""
        layers = [self.defaults, *(self.quants[key] for key in sorted(self._keys(quant), key=_budget_key_specificity))]
        given = {name: getattr(layer, name) for layer in layers for name in layer.model_fields_set}
        return GateBudget.model_construct(**given)

    def _keys(self, quant: str) -> Iterator[str]:
        family = quant_family(quant)
        return (key for key in self.quants if key == family or fnmatchcase(quant, key))


def load_gate_budgets(path: Path | None) -> GateBudgets:
    """The budgets in a YAML file; `None` selects the default budgets.

    Raises:
        BadBudgets: the file does not exist or is not valid.
    """
    file = path or DEFAULT
    data = _read_budget_file(file)
    try:
        content = load_strict_yaml(data)
    except YamlProblem as error:
        raise BadBudgets(f"{file.name} cannot be used: {error}.", _HELP) from error
    found = _checked_budget_file(content, file.name)
    if not any(_budget_sets_something(budget) for budget in (found.defaults, *found.quants.values())):
        raise BadBudgets(f"{file.name} sets no budget, so every file would pass.", _HELP)
    name = path.name if path else "default"
    return GateBudgets(
        name, hashlib.sha256(data).hexdigest(), found.defaults, _canonical_budgets(found.quants, file.name)
    )


def most_specific_gate_budget(name: str, patterns: Iterable[str]) -> str | None:
    """The pattern with the most letters among those that match a name; the last one if several have equally many."""
    return max((p for p in reversed([*patterns]) if fnmatchcase(name, p)), key=_budget_key_specificity, default=None)


def is_gate_budget_pattern(text: str) -> bool:
    """Whether the text is a pattern that may match several names."""
    return any(sign in text for sign in "*?[")


def _budget_key_specificity(key: str) -> tuple[bool, bool, int]:
    """Sorts families before patterns, patterns by their number of letters, and names last."""
    return key not in FAMILIES, not is_gate_budget_pattern(key), len(re.sub(r"\[[^]]*\]|[*?]", "", key))


# ---- reading -----------------------------------------------------------------------------------------


def _read_budget_file(path: Path) -> bytes:
    if not path.is_file():
        raise BadBudgets(f"{path} does not exist.", "Give a file of budgets: GATE=gate.yaml; or leave GATE out.")
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadBudgets(f"{path} cannot be read: {error.strerror}.", f"Type: ls -l {path}") from error


def _checked_budget_file(data: Any, where: str) -> _BudgetFile:
    if not isinstance(data, dict) or not data:
        raise BadBudgets(f"{where} holds no budgets: write a mapping with the key defaults or quants.", _HELP)
    data = {key: {} if value is None else value for key, value in data.items()}
    _check_budget_keys(data, _BudgetFile.model_fields, where)
    quants = data.get("quants", {})
    places = [("defaults", data.get("defaults", {}))]
    places += [(f"quants: {key}", value) for key, value in quants.items()] if isinstance(quants, dict) else []
    for place, budget in places:
        if isinstance(budget, dict):
            _check_budget_keys(budget, GateBudget.model_fields, f"{where}: {place}")
    try:  # as JSON: strict mode then refuses text and booleans in place of numbers
        return _BudgetFile.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise _bad_budget_value(error, where) from error


def _check_budget_keys(data: dict[str, Any], allowed: Iterable[str], where: str) -> None:
    for key in data:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1, cutoff=0.5)
            advice = f" Did you mean {near[0]!r}?" if near else ""
            raise BadBudgets(f"{where}: unknown key {key[:80]!r}.{advice}", f"Allowed are {', '.join(allowed)}.")


def _bad_budget_value(error: ValidationError, where: str) -> BadBudgets:
    first = error.errors()[0]
    place = ": ".join(str(part) for part in first["loc"] if part not in (_NUMBER, _BY_DOMAIN))
    message = f"{where}: {place} is {repr(first['input'])[:80]}: {first['msg'].removeprefix('Value error, ')}."
    return BadBudgets(message, _HELP)


def _budget_sets_something(budget: GateBudget) -> bool:
    return any(getattr(budget, name) not in (None, {}) for name in budget.model_fields_set - _NO_LIMITS)


def _canonical_budgets(quants: dict[str, GateBudget], where: str) -> dict[str, GateBudget]:
    """With names as llama-quantize spells them. A name or pattern that matches no quant is refused."""
    found: dict[str, GateBudget] = {}
    for key, budget in quants.items():
        name = _canonical_budget_key(key, where)
        if name in found:
            raise BadBudgets(f"{where}: quants repeats {name}, once as {key!r}.", "Write one of the two.")
        found[name] = budget
    return found


def _canonical_budget_key(key: str, where: str) -> str:
    if key.lower() in FAMILIES:
        return key.lower()
    if is_gate_budget_pattern(key):
        if any(fnmatchcase(quant.name, key.upper()) for quant in QUANTS):
            return key.upper()
        raise BadBudgets(f"{where}: no quant matches {key[:80]!r}.", "List them: make quants")
    try:
        return find_quant(key).name
    except UnknownQuant as error:
        near = next(iter(difflib.get_close_matches(key.lower(), FAMILIES, n=1)), None) or nearest_quant_name(key)
        advice = f" Did you mean {near!r}?" if near else ""
        hint = f"Name a quant (make quants), a pattern like Q4* or a family: {', '.join(FAMILIES)}."
        raise BadBudgets(f"{where}: unknown quant {key[:80]!r}.{advice}", hint) from error
