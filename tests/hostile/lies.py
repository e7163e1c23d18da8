"""What becomes of each lie of `lying_stage.py`, and an engine's run under attack: the same table for both engines."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from quantyard.engines import Engine
from quantyard.errors import QuantyardError
from quantyard.execution.runner import PlanRunner
from quantyard.paths import REPO_DIR
from quantyard.plan.build import dequantize_step
from quantyard.plan.steps import BuildPlan, ExternalInput, ModelFile
from quantyard.protocol.base import Progress, StageResult
from quantyard.sources.resolve import Source
from quantyard.store.artifact import Artifact, ModelId
from quantyard.store.manifest import read_manifest
from quantyard.store.stages import ModelStore
from tests.hostile import lying_stage
from tests.hostile.lying_stage import LIES, SECRET

MOST_S: Final = 20.0
_KEPT: Final = frozenset({
    "nothing but the truth", "request.json is a link", "request.json is a folder", "stamps.json is a link",
    "kept beside out is a link", "links that nobody names", "folders 1,500 deep that nobody names",
    "folders that cannot be opened", "an output is setuid", "an output is for everybody to write",
    "an output has no SHA-256", "a file that is not named", "100 MB without a line end",
    "100 MB without a line end for people", "300,000 lines of progress", "300,000 lines for people",
    "progress that lies", "a child that stays",
})  # fmt: skip
# Where it is no refusal: exit code, and what is said.
_OTHERWISE: Final = {
    "no result and exit code 1": (1, "ended with an exit code that stages do not use"),
    "no result and exit code 3": (3, "ended without a result"),
    "no result and exit code 5": (5, "The disk is full"),
}
# Words that must be in the refusal, beside the stage's name.
_SAYS: Final = {
    "result.json is a link": "is a link", "result.json is a FIFO": "is a FIFO", "result.json is /dev/zero": "a link",
    "files is a link to a host folder": "files is a link", "files is gone": "files is not there",
    "an output is a link to a host file": "config.json is a link", "an output is a FIFO": "config.json is a FIFO",
    "an output's folder is a link to a host folder": "templates is a link", "an output has two names": "2 names",
    "an output of a terabyte of holes": "never written", "an output is larger": "the stage says 1",
    "an output has another SHA-256": "SHA-256", "an output is missing": "not there",
    "an output that was not asked for": "must not leave", "an output twice": "twice",
    "the result of another stage": "the stage 'convert'", "another exit code": "says exit code 5",
    "NaN as a fact": "NaN", "1e999 as a fact": "finite", "400 digits as a fact": "digits", "a key twice": "repeated",
    "nested 100,000 deep": "deep", "a fact that is text": "n_params", "no result": "it is missing",
}  # fmt: skip


def may_be_kept(lie: str) -> bool:
    """Whether what is left is good, whatever else the stage did. Root reads every file."""
    return lie in _KEPT or (lie == "an output that nobody may read" and os.getuid() == 0)


@dataclass
class Heard:
    """A reporter that remembers."""

    progress_of: list[Progress] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def begin(self, label: str, number: int, of: int) -> None:
        """Nothing."""

    def progress(self, label: str, progress: Progress) -> None:
        """Remember it."""
        self.progress_of.append(progress)

    def end(self, label: str, result: StageResult) -> None:
        """Nothing."""

    def fail(self, label: str, text: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Remember it."""
        self.notes.append(text)


@dataclass(frozen=True)
class Attack:
    """A store, a host folder beside it, and an engine whose `dequantize` lies."""

    folder: Path
    engine_of: Callable[[Path], Engine]  # the folder that stands in for the package `builder`

    @property
    def host(self) -> Path:
        """What the stage has no business with."""
        return self.folder / "host"

    def prepare(self, lie: str) -> PlanRunner:
        """A build of one step, `dequantize`, that tells this lie."""
        (self.host / "additional").mkdir(parents=True)
        for name, text in (("victim", SECRET), ("x.jinja", SECRET), ("config.json", "{}")):
            (self.host / name).write_text(text)
        package = self.folder / "package" / "builder"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "dequantize.py").write_text(Path(lying_stage.__file__).read_text())
        (package / "lie").write_text(f"{lie}\n{self.host}")
        given = self.folder / "given"
        given.mkdir()
        origin = ExternalInput(Artifact("0" * 64, (), given))
        file = ModelFile(origin, "model.gguf")
        source = Source(ModelId("org", "name", "c" * 40), "gguf", "a model", (), gguf_file="model.gguf", dtypes={})
        plan = BuildPlan(source, (dequantize_step(file, 100),), file, (), "auto", "")
        return PlanRunner(plan, self.engine_of(package), ModelStore(self.folder / "store", source.model), REPO_DIR)

    def check(self, lie: str) -> None:
        """It ends soon, says what was wrong, and nothing but the truth is kept."""
        runner, heard, before = self.prepare(lie), Heard(), self._seen()
        started, error = time.monotonic(), None
        try:
            runner.run(heard)
        except QuantyardError as raised:
            error = raised
        assert time.monotonic() - started < MOST_S
        assert self._seen() == before, "something of the host was changed"
        self._check_end(lie, error)
        self._check_store(lie, runner.store, finished=error is None)
        assert all(0 <= told.done < 2**63 for told in heard.progress_of) and len(heard.progress_of) < 2000

    def _check_end(self, lie: str, error: QuantyardError | None) -> None:
        if may_be_kept(lie):
            assert error is None, error
            return
        assert error is not None, "it was believed"
        code, said = _OTHERWISE.get(lie, (2, _SAYS.get(lie, "is refused")))
        assert error.code == code and said in error.message and "dequantize" in error.message, error.message
        assert len(error.message) < 2000 and SECRET not in error.message

    def _check_store(self, lie: str, store: ModelStore, *, finished: bool) -> None:
        folders = [path for path in (store.folder / "stages").iterdir() if not path.name.startswith(".")]
        assert len(folders) == finished and not list((store.folder / "stages").glob(".*"))
        manifest = read_manifest(store.folder / "manifest.json")
        assert (manifest is not None) == finished or (manifest is not None and not manifest.stages)
        for path in (inner for folder in folders for inner in folder.rglob("*")):
            assert not path.is_symlink() and (path.is_file() or path.is_dir()), path
            assert not path.stat().st_mode & 0o7022 and path.name != "payload.sh", path
        if lie == "a child that stays":
            time.sleep(1.2)
            assert (folders[0] / "files" / "config.json").read_text() == "{}", "it is still there"

    def _seen(self) -> dict[str, tuple[int, str]]:
        """The host folder, with modes."""
        files = sorted(self.host.rglob("*"))
        return {str(p): (p.stat().st_mode, p.read_text() if p.is_file() else "") for p in files}


def names() -> list[str]:
    """All lies."""
    return list(LIES)
