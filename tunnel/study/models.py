"""The study file (contract 3) as frozen values: what may be asked, and what each key must hold."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tunnel.run import BALANCE, TOP_K
from tunnel.schedule import HALF_LIFE
from tunnel.space import (
    LESSON,
    MIX,
    SHAPE,
    Axis,
    Choice,
    Range,
    Scalar,
    by_source,
    check_lengths,
    check_rules,
    check_scalar,
    parse_space,
)
from tunnel.study.corpora import Data, Mix
from tunnel.study.lessons import Task, Teacher
from tunnel.study.means import Resources, StageResources, check_server
from tunnel.study.money import Limit, Notify, Price
from tunnel.study.values import Frozen, Name, Once, Positive, Tokens, listed


class Model(Frozen):
    """The body and its base shape: the shape at which every rule is the same model."""

    head_dim: int = Field(64, gt=0)
    base_width: int = Field(256, gt=0)
    base_depth: int = Field(8, gt=0)
    seq_len: int = Field(4096, gt=1)
    ffn_ratio: float = Field(2.5, gt=0)  # MiniCPM  *from paper*
    scale_emb: float = Field(12.0, gt=0)  # MiniCPM, Table 7  *from paper*
    scale_depth: float = Field(1.4, gt=0)  # MiniCPM, Table 7  *from paper*
    init_std: float = Field(0.1, gt=0)  # MiniCPM, Table 7  *from paper*


class Train(Frozen):
    """Settings that every stage starts from; a stage's `space` overrides them."""

    lr: float = Field(0.01, gt=0)  # MiniCPM: best of six values from 0.04B to 2.1B  *from paper*
    warmup: float = Field(0.02, ge=0)
    decay: float = Field(0.1, gt=0, lt=1)  # MiniCPM: 10% is enough  *from paper*
    decay_shape: str = "1-sqrt"
    min_ratio: float = Field(0.0, ge=0, lt=1)
    half_life: float = Field(HALF_LIFE, gt=0)  # of an exponential decay, as a part of its length
    decay_mix: Mix = Field(default_factory=dict)  # of the decay's sequences; the rest goes on as the trunk would
    schedule: Literal["wsd", "cosine"] = "wsd"  # cosine: one cosine from warmup to the end, the baseline
    batch_tokens: Tokens = 1 << 19
    micro_batch_tokens: Tokens | None = None  # gradient accumulation: tokens of one pass
    weight_decay: float = Field(0.0, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, gt=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    clip: float = Field(1.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)  # of the attention's weights
    balance: float = Field(BALANCE, ge=0)  # weight of the experts' balance loss
    masking: Literal["words", "tokens"] = "words"  # what an encoder hides as a whole
    precision: Literal["fp32", "bf16"] = "fp32"

    @model_validator(mode="after")
    def lengths(self) -> Train:
        check_scalar("decay_shape", self.decay_shape)
        check_lengths(self.warmup, self.decay)
        return self


class Target(Frozen):
    """The big run that the study is about."""

    name: Name
    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    kv_heads: int | None = Field(None, gt=0)
    experts: int = Field(1, gt=0)  # of a layer; 1: dense
    top_k: int = Field(TOP_K, gt=0)
    granularity: int = Field(1, gt=0)
    tokens: Tokens
    seq_len: int | None = None
    tokenizer: str | None = None
    batch_tokens: Tokens | None = None
    precision: Literal["fp32", "bf16"] | None = None


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


class Study(Frozen):
    """The whole question."""

    question: str = Field(min_length=1)
    family: Name = "gpt"
    rules: Annotated[str, AfterValidator(check_rules)] = "minicpm"
    seed: int = Field(0, ge=0)  # added to every seed: another draw of the whole study
    data: Data = Data()
    model: Model = Model()
    train: Train = Train()
    teacher: Annotated[tuple[Teacher, ...], Field(max_length=16)] = ()
    task: Annotated[tuple[Task, ...], Field(max_length=16)] = ()
    target: tuple[Target, ...] = ()  # none: the study compares, and forecasts nothing
    resources: Resources = Resources()
    price: Price = Price()
    budget: Limit = Limit()
    notify: Notify | None = None
    storage: str | None = None  # postgresql://user@host/database, for a team's asks; default: SQLite in the folder
    storage_password_env: str = Field("TUNNEL_DB_PASSWORD", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    stage: tuple[Stage, ...] = Field(min_length=1)
    small: dict[str, Any] = Field(default_factory=dict)

    def stage_named(self, name: str) -> Stage:
        return next(s for s in self.stage if s.name == name)

    def taught_by(self, stage: Stage) -> list[str]:
        """The stages whose best runs a stage's students learn from."""
        return [name for name in stage.teachers if name not in {t.name for t in self.teacher}]

    def is_wanted(self, stage: str) -> bool:
        """Whether a later stage begins with, or learns from, its finished models."""
        return any(stage in (*s.teachers, *s.models) for s in self.stage)

    def resources_of(self, stage: Stage) -> Resources:
        """What a stage's workers take: its own words, and the study's for the rest."""
        return self.resources.model_copy(update=stage.resources.model_dump(exclude_none=True))

    @model_validator(mode="after")
    def consistent(self) -> Study:
        if self.storage is not None:
            check_server(self.storage)  # here, and not of the field: an error of the field would show a password
        if self.budget.max_cost is not None and not self.price.per_hour:
            raise ValueError("budget.max_cost needs a price.per_hour above 0")
        names: list[str] = []
        tasks = [t.name for t in self.task]
        for stage in self.stage:
            if stage.name in names:
                raise ValueError(f"stage {stage.name}: the name is taken")
            for before in stage.after:
                if before not in names:
                    raise ValueError(f"stage {stage.name}: after names {before!r}, which is no earlier stage")
            for teacher in self.taught_by(stage):
                if teacher not in names:
                    choices = ", ".join([*names, *(t.name for t in self.teacher)])
                    raise ValueError(f"stage {stage.name}: teacher {teacher!r} is no earlier stage; choices: {choices}")
            for kind, asked, known in (("models", stage.models, names), ("task", stage.tasks, tasks)):
                for one in (a for a in asked if a not in known):
                    choices = ", ".join(known) or "none"
                    raise ValueError(f"stage {stage.name}: {kind} names {one!r}; choices: {choices}")
            names.append(stage.name)
        if len({t.name for t in self.target}) < len(self.target):
            raise ValueError("target: two targets have one name")
        for width, where in self._widths():
            if width % self.model.head_dim:
                raise ValueError(f"{where}: width {width} is not a multiple of model.head_dim {self.model.head_dim}")
        for stage in self.stage:
            axis, whole_ones = stage.axes.get("batch_tokens"), self.model.seq_len
            if isinstance(axis, Range) and (axis.low % whole_ones or (axis.step or 1) % whole_ones):
                raise ValueError(
                    f"stage {stage.name}: batch_tokens: low and step must be multiples of model.seq_len {whole_ones} "
                    "(log = false), or a batch stage lists the batches"
                )
        for target in self.target:
            self._comparable(target)
        for name, where in self._mixed():
            if self.train.schedule == "cosine":
                raise ValueError(f"{where}: {MIX} belongs to a decay, and a cosine has none")
            if name not in (known := [s.name for s in self.data.source]):
                choices = ", ".join(known) or "none: [[data.source]] names one"
                raise ValueError(f"{where}: {MIX}.{name} is not the name of a source; choices: {choices}")
        return self

    def _mixed(self) -> list[tuple[str, str]]:
        """The sources that decays ask for, and where."""
        found = [(name, "train") for name in self.train.decay_mix]
        for stage in self.stage:
            asked = [*(n.partition(".")[2] for n in parse_space(stage.space) if n.startswith(f"{MIX}."))]
            asked += [n for d in stage.decays for n in d.decay_mix or {}]
            found += [(name, f"stage {stage.name}") for name in asked]
        return found

    def _widths(self) -> list[tuple[int, str]]:
        found = [(t.width, f"target {t.name}") for t in self.target] + [(self.model.base_width, "model.base_width")]
        for stage in self.stage:
            where = f"stage {stage.name}"
            found += [(w, where) for w, _ in stage.shapes]
            axis = stage.axes.get("width", stage.fixed.get("width"))
            if isinstance(axis, Range):
                found += [(int(w), where) for w in (axis.low, axis.high, axis.step or 1)]
            elif isinstance(axis, int):
                found.append((axis, where))
        return found

    def _comparable(self, target: Target) -> None:
        """Losses compare only at equal sequence length and tokenizer (SCIENCE: a forecast across them is refused)."""
        for key, ours in (("seq_len", self.model.seq_len), ("tokenizer", self.data.tokenizer)):
            theirs = getattr(target, key)
            if theirs is not None and theirs != ours:
                raise ValueError(
                    f"target {target.name}: {key} {theirs} differs from the proxies' {ours}; not comparable"
                )
        heads = target.width // self.model.head_dim
        if target.kv_heads is not None and heads % target.kv_heads:
            raise ValueError(f"target {target.name}: kv_heads {target.kv_heads} does not divide its {heads} heads")
