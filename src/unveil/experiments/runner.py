"""Runs side by side: each contestant trained by the same loop under one budget, for several seeds, and judged alike."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from unveil.errors import UnveilError
from unveil.methods import base_of, method_class
from unveil.planning.dry_run import rehearse
from unveil.recipes.finetune import finetune
from unveil.recipes.pretrain import pretrain
from unveil.reports.comparison import Row, figures_of, row_of
from unveil.runs.pretrain_setup import resolve, usual_for
from unveil.train.checkpoint import write_whole
from unveil.train.loop import TrainConfig
from unveil.train.run_folder import Run, receipt, tell

STAGE = 0.25
"""Share of a budget in seconds for a first stage, such as BEiT's tokenizer; what it took is missing to the second one."""


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """How to compare."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Each method is trained once with each."""
    seconds: float | None = None
    """Seconds of steps for each, in place of equal epochs: how many epochs that is is found by a short trial."""
    labelled: str | None = None
    """Labelled data to fine-tune on; DATA itself by default."""
    tuned: bool = True
    """Fine-tune each as well: 10 epochs, or with other options of `unveil finetune`, such as `--finetune.epochs 50`."""


class Entry(NamedTuple):
    """What is trained: a method, or a method under another name."""

    name: str
    options: dict[str, Any]
    """Those that it does not share with the others."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Contestants, and what they share. Every run is an ordinary run folder inside `folder`."""

    folder: Path
    data: str
    own: ComparisonConfig
    shared: dict[str, Any]
    """Options of all, `model` among them."""
    tuning: dict[str, Any]
    """Options of fine-tuning."""
    entries: Sequence[Entry]

    def path(self, name: str, seed: int, suffix: str = "") -> Path:
        """A run folder."""
        return self.folder / f"{name}-seed{seed}{suffix}"

    def options(self, who: Entry, seed: int) -> dict[str, Any]:
        """Its own options and the shared ones; the name of another contestant becomes that one's run folder of this seed."""
        named = {key: str(self.path(value, seed)) for key, value in who.options.items() if value in self.names}
        return self.shared | who.options | named | {"seed": seed}

    @property
    def names(self) -> list[str]:
        """Of the contestants."""
        return [who.name for who in self.entries]

    @property
    def stages(self) -> set[str]:
        """Contestants that are trained only because another one names them."""
        values = [value for who in self.entries for value in who.options.values() if isinstance(value, str)]
        return {name for name in self.names if name in values}

    @property
    def judged(self) -> list[Entry]:
        """The others."""
        return [who for who in self.entries if who.name not in self.stages]

    @property
    def tuned(self) -> list[Entry]:
        """Those of them that are fine-tuned as well."""
        return [who for who in self.judged if self.own.tuned and method_class(base_of(who.name)).supports_finetuning]

    def stages_of(self, who: Entry, seed: int) -> list[Run]:
        """The run folders that its own options name: trained here before it, or elsewhere."""
        values = [value for key, value in self.options(who, seed).items() if key in who.options and isinstance(value, str)]
        return [Run(value) for value in values if (Path(value) / "run.json").is_file()]

    def run(self, after_each: Callable[[], object]) -> None:
        """Trains what is missing, seed after seed; calls `after_each` when a run has ended."""
        for seed in self.own.seeds:
            for who in self.entries:
                options = self.options(who, seed) | {"epochs": self.epochs(who, seed)}
                tell(True)(f"\n{who.name}, seed {seed}: {options['epochs']:.4g} epochs")
                run = pretrain(self.data, method=base_of(who.name), out=self.path(who.name, seed), **options)
                if who in self.tuned:
                    self.tune(run, seed, self.path(who.name, seed, "-finetune"))
                after_each()
            for who in self.tuned[:1]:
                self.tune(Run(self.path(who.name, seed)), seed, self.path("untrained", seed, "-finetune"), scratch=True)
                after_each()

    def tune(self, run: Run, seed: int, out: Path, scratch: bool = False) -> Run:
        """Fine-tunes from a run, or an untrained encoder of its shape."""
        return finetune(run.path, self.own.labelled, out=out, scratch=scratch, seed=seed, **self.tuning)

    def epochs(self, who: Entry, seed: int) -> float:
        """As given; or as many as the seconds allow, tried once and written down: all seeds and a second call take as many."""
        options = self.options(who, seed)
        if self.own.seconds is None or "epochs" in who.options:
            return float(options.get("epochs") or usual_for(self.data, base_of(who.name)).get("epochs") or TrainConfig.epochs)
        path = self.path(who.name, seed)
        budget = self.own.seconds * (STAGE if who.name in self.stages else 1.0)
        budget -= sum(each.results["seconds"] for each in self.stages_of(who, seed))
        if self.known_epochs().get(who.name, {}).get("seconds") != self.own.seconds:
            start = time.monotonic()
            setting = resolve(self.data, base_of(who.name), options.pop("model", None), options)
            tell(True)(f"trying {who.name} for a moment ...")
            trial = rehearse(setting, path, time.monotonic() - start, min(30.0, max(1.0, self.own.seconds / 10)))
            steps = trial.steps_within(budget)
            if not steps:
                raise UnveilError(f"{who.name} has {budget:.3g} seconds, and a step takes {trial.step:.3g}: give more --seconds")
            found = {"seconds": self.own.seconds, "epochs": steps * setting.training.batch_size / trial.train}
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / "epochs.json", json.dumps(self.known_epochs() | {who.name: found}, indent=1) + "\n")
        return float(self.known_epochs()[who.name]["epochs"])

    def known_epochs(self) -> dict[str, Any]:
        """What earlier trials found."""
        path = self.folder / "epochs.json"
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def ended(self, path: Path) -> Run | None:
        """A run that has ended."""
        return Run(path) if (path / "results.json").is_file() and (path / "report.html").is_file() else None

    def rows(self) -> list[Row]:
        """What the run folders say, as far as they have ended."""
        rows, first = [], (self.tuned or self.judged)[0].name
        yardsticks: dict[str, list[dict[str, float]]] = {"untrained": [], "raw pixels": []}
        for who in self.entries:
            seen = []
            for seed in self.own.seeds:
                run, tuned = self.ended(self.path(who.name, seed)), self.ended(self.path(who.name, seed, "-finetune"))
                if run:
                    seen.append(figures_of(run, self.stages_of(who, seed), tuned if self.own.tuned else None))
                if run and who.name == first:
                    scratch = self.ended(self.path("untrained", seed, "-finetune")) if self.own.tuned else None
                    tuned_score = {"finetune": scratch.results["score"]["top1"]} if scratch else {}
                    features = run.results.get("features") or {}
                    yardsticks["untrained"].append(features.get("untrained", {}) | tuned_score)
                    yardsticks["raw pixels"].append(features.get("raw pixels", {}))
            if seen:
                rows.append(row_of(who.name, seen))
        return rows + [row_of(name, seeds, True) for name, seeds in yardsticks.items() if any(seeds)]

    @property
    def ended_runs(self) -> list[Path]:
        """The folders of the runs that have ended."""
        pairs = [(who.name, seed) for who in self.entries for seed in self.own.seeds]
        paths = [self.path(name, seed, suffix) for name, seed in pairs for suffix in ("", "-finetune")]
        return [path for path in paths if self.ended(path)]

    @property
    def facts(self) -> dict[str, Any]:
        """Every option by name, and the receipt."""
        config = {**asdict(self.own), **self.shared}
        config |= {f"{who.name}.{key}": value for who in self.entries for key, value in who.options.items()}
        config |= {f"finetune.{key}": value for key, value in self.tuning.items()}
        return {"methods": self.names, "data": self.data, "config": config, **receipt()}
