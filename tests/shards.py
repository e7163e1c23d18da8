"""Runs a measuring stage in this process, whole or in shards, and compares what it left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quantyard.protocol.base import StageRequest
from quantyard.protocol.runner import Stage, StageOutcome
from quantyard.protocol.shard import Shard, shard_input

_TIMES: Final = ("duration_s", "requests_per_s")


@dataclass(frozen=True)
class RanStage:
    """The outcome of a stage, and the folder of what it left."""

    outcome: StageOutcome
    files: Path
    cpu_s: float  # of its process so far: start and imports too, if that has run nothing else

    def left(self, name: str) -> Any:
        """A JSON file that it left, without times."""
        return without_times(json.loads((self.files / name).read_bytes()))


def without_times(value: Any) -> Any:
    """The value without what a clock says: two runs of the same work differ in it."""
    if isinstance(value, Mapping):
        return {name: without_times(inner) for name, inner in value.items() if name not in _TIMES}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class MeasuringStage:
    """A stage with its request and its inputs, each a folder or one file."""

    work: Callable[[Stage, Any], StageOutcome]
    request: StageRequest
    inputs: Mapping[str, Path]

    def run(self, folder: Path, shard: Shard | None = None, shards: Mapping[str, Path] | None = None) -> RanStage:
        """Run it in a folder: the whole, one shard, or what puts these shards together."""
        stage = Stage(self.request.stage, folder / "in", folder / "out", {})
        stage.in_dir.mkdir(parents=True)
        stage.files_dir.mkdir(parents=True)
        for name, path in {**self.inputs, **(shards or {})}.items():
            if path.is_dir():
                (stage.in_dir / name).symlink_to(path)
            else:
                (stage.in_dir / name).mkdir()
                (stage.in_dir / name / path.name).symlink_to(path)
        request = self.request.model_copy(update={"shard": shard})
        return RanStage(self.work(stage, request), stage.files_dir, time.process_time())

    def run_in_shards(
        self, folder: Path, count: int, workers: Executor | None = None
    ) -> tuple[RanStage, list[RanStage]]:
        """Run every shard, by these workers or one after the other, and put them together: the whole, and what each
        shard left.
        """
        folders = [folder / str(index) for index in range(1, count + 1)]
        shards = [Shard(index=index, count=count) for index in range(1, count + 1)]
        ran = list((workers.map if workers else map)(self.run, folders, shards))
        made = {shard_input(index): shard.files for index, shard in enumerate(ran, 1)}
        if workers is None:
            return self.run(folder / "whole", shards=made), ran
        return workers.submit(self.run, folder / "whole", shards=made).result(), ran
