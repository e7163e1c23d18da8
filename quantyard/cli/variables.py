"""Refuses variables that would be ignored: make and the shell accept every name.

What is typed after make (`make build MODLE=x`) is meant for this command, so every name that the command does not take
is refused. Make passes these names to its recipes, in MAKEFLAGS after ` -- `. Below the Makefile of another project
only misspelt names are, since the others may be that project's.

The environment holds names for other programs and settings for other commands. There a name is refused only if it is
a slip of a setting which the command takes and which is not given: `SUIT`, `DRYRUN`, `hf_token`, `QUANTYARD_SUITE`. A
setting that the command does not take is named in a note.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Final

from quantyard.cli.commands import COMMANDS, Command
from quantyard.cli.make_targets import MAKE_TARGETS
from quantyard.cli.settings import BY_NAME
from quantyard.errors import BadRequest
from quantyard.paths import REPO_DIR

CALLED_BY_MAKE: Final = "QUANTYARD_CALLED_BY_MAKE"  # set by our Makefile only
_ALIKE: Final = 0.8
_SHORTEST: Final = 4  # letters of a name that can be misspelt; RM and AR are make's
_SHORTEST_COUNTED: Final = 5  # of a setting, with a letter too many or missing: SPEED is not SEED
_SHORTEST_CHANGED: Final = 6  # with one letter replaced: DATE is not GATE
_MOST_NAMED: Final = 3
_ASSIGNMENT: Final = re.compile(r"([^\s:?+!=]+)(?:::?:?|\?|\+|!)?=")
_OWN: Final = "QUANTYARD_"
_NO_SETTING: Final = (CALLED_BY_MAKE, "QUANTYARD_HOME")
_OF_MAKE: Final = ("PYTHON", "WHEELS", "SLOW", "HOSTILE")  # of the Makefile and its scripts
# Read whatever the command is: by the set-up of the virtual environment, or by the libraries of the network.
_EVERYWHERE: Final = (*_OF_MAKE, "HF_TOKEN", "HF_ENDPOINT", "EXTRA_CA", "QUANTYARD_HOME", "PROXY")
_SET_FOR_ALL: Final = ("network", "base images", "running", "cluster")  # groups of settings that describe the machine


def command_of(args: argparse.Namespace) -> Command:
    """The row of the command that was parsed."""
    return next(command for command in COMMANDS if command.function == args.command)


def check_variables(args: argparse.Namespace, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Refuse variables that were meant for this command and that it would ignore.

    Returns:
        Settings of other commands in the environment, which this one ignores.

    Raises:
        BadRequest: a variable is misspelt, or was typed after make and is not one of this command.
    """
    given = {name for name in BY_NAME if environment.get(name) or getattr(args, name, None) is not None}
    return _check_command_variables(command_of(args), environment, given)


def check_target_variables(name: str, environment: Mapping[str, str]) -> None:
    """The same for what make does beside the commands.

    Raises:
        BadRequest: a variable is misspelt, or was typed after make and is not one of this target.
    """
    target = next(target for target in MAKE_TARGETS if target.name == name)
    _check_command_variables(target, environment, {name for name in command_variables(target) if environment.get(name)})


def _check_command_variables(
    command: Command, environment: Mapping[str, str], given: Collection[str]
) -> tuple[str, ...]:
    typed = list(typed_make_variables(environment.get("MAKEFLAGS", ""))) if environment.get(CALLED_BY_MAKE) else []
    # Below another project's Makefile the names may be its own.
    _check_typed(command, typed, whole=environment.get("MAKELEVEL", "1") == "1")
    _check_environment_variables(command, environment, given, typed)
    unused = {
        name for name in given if not _command_takes_variable(command, name) and BY_NAME[name].group not in _SET_FOR_ALL
    }
    return tuple(name for name in BY_NAME if name in unused)


def command_variables(command: Command) -> tuple[str, ...]:
    """The settings that a command takes."""
    return tuple(BY_NAME) if command.settings is None else tuple(command.settings)


def _command_takes_variable(command: Command, name: str) -> bool:
    if name in _EVERYWHERE or name.upper().endswith("_PROXY"):
        return True
    if name in command_variables(command):
        return True
    return command.name == "serve" and (name.startswith("COMPOSE_") or name in compose_variables())


@cache
def compose_variables() -> frozenset[str]:
    """The variables of compose.yaml, from the file that explains them."""
    text = (REPO_DIR / ".env.example").read_text(encoding="utf-8")
    return frozenset(re.findall(r"^#?([A-Z_]+)=", text, re.MULTILINE))


# ---- typed after make ----------------------------------------------------------------------------------


def typed_make_variables(makeflags: str) -> Iterator[str]:
    """The names of the variables on make's command line. A blank in a value is escaped with a backslash."""
    _, _, assignments = f" {makeflags} ".partition(" -- ")
    for word in re.findall(r"(?:\\.|\S)+", assignments):
        if match := _ASSIGNMENT.match(word):
            yield match[1]


def _check_typed(command: Command, typed: Sequence[str], *, whole: bool) -> None:
    wrong = [name for name in typed if not _command_takes_variable(command, name)]
    meant = {name: _meant_variable(name, command) for name in wrong}
    refused = [name for name in wrong if whole or (meant[name] and name not in compose_variables())]
    if not refused:
        return
    known = [
        name for name in refused if name in BY_NAME or name in compose_variables() or _commands_with_variables([name])
    ]
    listing = _variable_listing(command)
    shown = ", ".join(name[:80] for name in (known or refused))
    if known and len(known) == len(refused):
        message = f"{command.name} does not take {shown}{_commands_with_variables(known)}."
    else:
        unknown = [name[:80] for name in refused if name not in known]
        what = "an unknown variable" if len(unknown) == 1 else "unknown variables"
        message = f"make was given {what}: {', '.join(unknown)}."
    told = " ".join(f"{name}=…" for name in dict.fromkeys(filter(None, (meant[name] for name in refused))))
    if told:
        raise BadRequest(message, f"Did you mean {told}? {listing}")
    if known:
        raise BadRequest(message, listing)
    name = refused[0][:80]
    raise BadRequest(message, f"For another program, put it in front: {name}=… make {command.name}. {listing}")


def _variable_listing(command: Command) -> str:
    """Where the variables of a command are listed; those of a target are few."""
    if command.function:
        return f"Its variables: make {command.name}-help"
    return f"Its variables: {', '.join(command_variables(command)) or 'none'}"


def _commands_with_variables(names: Sequence[str]) -> str:
    """The commands, and what make does beside them, that use all of these settings; `init` only writes them down."""
    every = [command for command in (*COMMANDS, *MAKE_TARGETS) if command.settings and command.name != "init"]
    takers = [command.name for command in every if all(_command_takes_variable(command, name) for name in names)]
    if not takers:
        return ""
    if len(takers) > _MOST_NAMED:
        takers = [*takers[:_MOST_NAMED], "others"]
    return f"; {_listed_variables(takers)} {'does' if len(takers) == 1 else 'do'}"


def _listed_variables(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _meant_variable(name: str, command: Command) -> str:
    """The variable that a name most likely means: of this command, else of any; "" for a setting or without one."""
    taken, every = command_variables(command), () if name in BY_NAME else tuple(BY_NAME)
    return next(filter(None, (_close_variable_name(name, known) for known in (taken, every))), "")


def _close_variable_name(name: str, known: Collection[str]) -> str:
    upper = name.upper().replace("-", "_").removeprefix(_OWN)
    if upper in known:
        return upper
    if len(upper) < _SHORTEST:
        return ""
    if alike := difflib.get_close_matches(upper, known, n=1, cutoff=_ALIKE):
        return alike[0]
    return next((one for one in known if _variables_one_letter_apart(upper, one)), "")


# ---- in the environment --------------------------------------------------------------------------------


def _check_environment_variables(
    command: Command, environment: Mapping[str, str], given: Collection[str], typed: Collection[str]
) -> None:
    free = [name for name in command_variables(command) if name not in given]
    strange = (name for name in environment if name not in BY_NAME and name not in typed and environment[name])
    for name in strange:
        if meant := _variable_slip(name, free):
            message = f"The environment holds {name[:80]}, which is not a variable of Quantyard."
            hint = f"Did you mean {meant}=…? If another program needs it: env -u {name[:80]} make {command.name} …"
            raise BadRequest(message, hint)


def _variable_slip(name: str, known: Collection[str]) -> str:
    """The setting that this name is a slip of: in another case, without a line, or with one letter wrong."""
    upper = name.upper().replace("-", "_")
    if upper.endswith("_PROXY") or name in _NO_SETTING:
        return ""
    plain = upper.removeprefix(_OWN).replace("_", "")
    if len(plain) < _SHORTEST:
        return ""
    alike = (one for one in known if plain == one.replace("_", "") or _variables_one_letter_apart(upper, one))
    meant = next(alike, "")
    return meant if meant and name not in compose_variables() else ""


def _variables_one_letter_apart(one: str, other: str) -> bool:
    """Whether two letters changed places, or in a longer word one is missing, too many, or another."""
    if abs(len(one) - len(other)) == 1 and len(other) >= _SHORTEST_COUNTED:
        longer, shorter = sorted((one, other), key=len, reverse=True)
        return any(longer[:at] + longer[at + 1 :] == shorter for at in range(len(longer)))
    if len(one) != len(other):
        return False
    wrong = [at for at in range(len(one)) if one[at] != other[at]]
    if len(wrong) == 1:
        return len(one) >= _SHORTEST_CHANGED
    first, last = wrong[0], wrong[-1]
    return len(wrong) == 2 and last == first + 1 and one[first : last + 1] == other[first : last + 1][::-1]
