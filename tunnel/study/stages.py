"""[[stage]]: one sweep of a study, its budget, its rungs and its decays."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from tunnel.space import LESSON, MIX, SHAPE, Axis, Choice, Range, Scalar, by_source, check_scalar, parse_space
from tunnel.study.corpora import Mix
from tunnel.study.means import StageResources
from tunnel.study.values import Frozen, Name, Once, Positive, Tokens, listed


class Budget(Frozen):
    """How many trials, and how long each: exactly one of tokens, tokens_per_param, flops."""

    trials: int = Field(16, gt=0, le=100_000)
    tokens: Tokens | None = None
    tokens_per_param: Positive | None = None  # per non-embedding parameter
    flops: Positive | None = None  # full count, attention and logits included
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), Once] = (0,)


class Rungs(Frozen):
    """The readings' lengths D of a ladder: exactly one of tokens, tokens_per_param and flops (the full count of each).

    `max_flops`: a shape has the rungs whose C = 6ND is at most that: small shapes reach the target's D, large ones go
    towards its N, and no reading costs what the corner of a grid would.
    """

    tokens: tuple[Tokens, ...] = ()
    tokens_per_param: tuple[Positive, ...] = ()
    flops: tuple[Positive, ...] = ()
    epochs: tuple[Positive, ...] = ()  # of a task
    max_flops: Positive | None = None

    @model_validator(mode="after")
    def one(self) -> Rungs:
        if sum(map(bool, (self.tokens, self.tokens_per_param, self.flops, self.epochs))) != 1:
            raise ValueError("rungs needs exactly one of tokens, tokens_per_param, flops")
        if self.flops and self.max_flops:
            raise ValueError("rungs.flops are what each reading costs: max_flops has nothing to cut")
        return self

    @property
    def unit(self) -> str:
        return next(k for k in ("tokens", "tokens_per_param", "flops", "epochs") if getattr(self, k))

    @property
    def listed(self) -> tuple[float, ...]:
        """The rungs as they were asked."""
        return tuple(getattr(self, self.unit))

    def lengths(self, n: int) -> list[float]:
        """D in tokens, not rounded, of a shape of `n` parameters; none where all cost more than `max_flops`."""
        every = [float(r) * (n if self.unit == "tokens_per_param" else 1) for r in self.listed]
        return [d for d in every if self.max_flops is None or 6 * n * d <= self.max_flops]


class Decay(Frozen):
    """One of several decays to each rung, off the same trunk; what is not said is the stage's own."""

    decay: float | None = Field(None, gt=0, lt=1)
    decay_shape: str | None = None
    half_life: float | None = Field(None, gt=0)
    decay_mix: Mix | None = None

    @model_validator(mode="after")
    def known(self) -> Decay:
        if self.decay_shape is not None:
            check_scalar("decay_shape", self.decay_shape)
        return self

    def values(self) -> dict[str, Scalar]:
        return by_source(self.model_dump(exclude_none=True))

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


class Sampler(Frozen):
    name: Literal["tpe", "gp", "cmaes", "sobol", "random", "grid", "pareto"] = "tpe"


class Stage(Frozen):
    """One sweep of a study: a search, whose trials a sampler finds, or a list of shapes × fan × rungs.

    Listed are a `ladder` (a law's readings), a `batch` stage (several batches), a `verdict` (grids around the optimum
    over widths, depths, rungs or batches, with seeds) and `noise` (seeds at one setting).
    """

    name: Name
    kind: Literal["search", "ladder", "batch", "verdict", "noise", "distill", "finetune"]
    after: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()
    space: dict[str, Any] = Field(default_factory=dict)
    budget: Budget = Budget()
    sampler: Sampler = Sampler()
    resources: StageResources = StageResources()
    shapes: Annotated[tuple[tuple[int, int], ...], Once] = ()
    fan: Annotated[tuple[float, ...], Once] = ()
    batches: Annotated[tuple[Tokens, ...], Once] = ()
    rungs: Rungs | None = None
    fork: Literal["decay", "upcycle"] = "decay"  # upcycle: a mixture that goes on from a dense body's stable trunk
    models: Annotated[tuple[str, ...], BeforeValidator(listed), Once] = ()  # of a finetune: stages; the teacher's first
    accept: float = Field(0.9, gt=0)  # of a finetune: the least share of the teacher's score, on every task
    start_layers: bool = False  # of a distill: the student begins with the teacher's layers that it matches
    decays: Annotated[tuple[Decay, ...], Once] = ()
    halving: int | None = Field(None, ge=2)  # at each rung one trial in so many goes on; needs rungs
    widen: int = Field(2, ge=0)  # times that a fan may be widened on a side where its minimum lies at the edge
    effect: float = Field(0.002, gt=0, lt=1)  # relative difference of losses that the study wants to see

    @property
    def searches(self) -> bool:
        """Whether a sampler finds its trials; else they are listed."""
        return self.kind == "search" or (self.kind == "distill" and not self.shapes)

    @property
    def teachers(self) -> tuple[str, ...]:
        """Whom its students learn from, by name."""
        told = parse_space(self.space).get("teacher", ())
        return tuple(map(str, told.values)) if isinstance(told, Choice) else (str(told),) if told else ()

    @property
    def axes(self) -> dict[str, Axis]:
        """What this stage searches, or lists."""
        return {k: v for k, v in parse_space(self.space).items() if isinstance(v, Range | Choice)}

    @property
    def fixed(self) -> dict[str, Scalar]:
        """What this stage sets for all its trials."""
        return {k: v for k, v in parse_space(self.space).items() if not isinstance(v, Range | Choice)}

    @model_validator(mode="after")
    def kind_fits(self) -> Stage:
        parse_space(self.space)
        if "flops" in self.fixed or isinstance(self.axes.get("flops"), Choice):
            raise ValueError("space.flops must be a range; one value for all trials is budget.flops")
        (self._search if self.searches else self._listed)()
        self._upcycles({**self.axes, **self.fixed})
        self._teaches()
        if self.halving and (self.rungs is None or len(self.rungs.listed) < 2):
            raise ValueError("halving compares trials at rungs: it needs at least two")
        for key in {name.partition(".")[0] for name in self.axes} & {"decay", MIX}:
            if any(getattr(d, key) is not None for d in self.decays):
                raise ValueError(f"decays lists what space.{key} searches: give one of them")
        return self

    def _teaches(self) -> None:
        distills, told = self.kind == "distill", [k for k in LESSON if k in parse_space(self.space)]
        if distills and not self.teachers:
            raise ValueError("a distill needs space.teacher: the name of an earlier stage, or of a [[teacher]]")
        if not distills and (told or self.start_layers):
            raise ValueError(f"{[*told, 'start_layers'][0]} belongs to a stage of kind distill")
        tunes, told = self.kind == "finetune", [k for k in ("task", "model") if k in parse_space(self.space)]
        if tunes and (not self.models or told != ["task"]):
            raise ValueError("a finetune needs models, the names of earlier stages, and space.task, of [[task]]s")
        if not tunes and (told or self.models or (self.rungs is not None and self.rungs.epochs)):
            raise ValueError(f"{[*told, 'models and rungs.epochs'][0]} belong to a stage of kind finetune")

    @property
    def tasks(self) -> tuple[str, ...]:
        """What its models are tuned on, by name."""
        told = parse_space(self.space).get("task", ())
        return tuple(map(str, told.values)) if isinstance(told, Choice) else (str(told),) if told else ()

    def _upcycles(self, space: dict[str, Any]) -> None:
        upcycles = self.fork == "upcycle"
        if upcycles != ("upcycle_at" in space):
            raise ValueError('fork = "upcycle" and space.upcycle_at belong together')
        if upcycles and space.get("experts", 1) == 1:
            raise ValueError('fork = "upcycle" needs space.experts, above 1')
        if upcycles and space.get("granularity", 1) != 1:
            raise ValueError("an upcycled expert is a copy of the whole network: no granularity but 1")

    def _search(self) -> None:
        if not self.axes:
            raise ValueError("space is empty: a search needs at least one range")
        for key in ("shapes", "fan", "batches"):
            if getattr(self, key):
                raise ValueError(f"{key} belongs to a ladder")
        lengths = [k for k in ("tokens", "tokens_per_param", "flops") if getattr(self.budget, k) is not None]
        if "flops" in self.axes:
            lengths.append("flops")
            if self.sampler.name in ("tpe", "gp", "cmaes"):
                raise ValueError(
                    f"flops is in the sampler's space, and {self.sampler.name} knows no cost: "
                    'the dearest would always win; sampler.name = "pareto" knows it'
                )
        if len(lengths) + (self.rungs is not None) != 1:
            raise ValueError("budget needs exactly one of tokens, tokens_per_param, flops; or the stage has rungs")
        shaped = [k for k in (*SHAPE, "top_k", "granularity") if k in self.axes]
        if shaped and lengths != ["flops"]:
            raise ValueError(
                f"{shaped[0]} is in the sampler's space, so the budget must be in flops: "
                "at equal tokens the biggest shape would always win"
            )

    def _listed(self) -> None:
        for name, axis in self.axes.items():
            first = name.partition(".")[0]
            if isinstance(axis, Range) or first in ("lr", "batch_tokens", *SHAPE, *Decay.model_fields):
                raise ValueError(f"{name}: a {self.kind} searches nothing; give shapes, fan, batches, rungs, decays")
        if self.kind == "finetune" and (self.shapes or self.rungs is None or not self.rungs.epochs):
            raise ValueError("a finetune needs rungs = { epochs = [...] }, and has the shapes of its models")
        if self.kind != "finetune" and (not self.shapes or self.rungs is None):
            raise ValueError(f"a {self.kind} needs shapes and rungs")
        if (self.kind == "batch" and not self.batches) or (self.kind == "ladder" and self.batches):
            raise ValueError("batches belong to a batch or verdict stage, and a batch stage needs them")
        if any(f <= 0 for f in self.fan):
            raise ValueError("fan holds factors of the learning rate, above 0")
        if any(w <= 0 or d <= 0 for w, d in self.shapes):
            raise ValueError("shapes holds [width, depth] pairs above 0")
