"""The study file (contract 3) as frozen values: what may be asked, and what each key must hold."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from tunnel.run import BALANCE, TOP_K
from tunnel.schedule import HALF_LIFE
from tunnel.space import (
    MIX,
    Range,
    check_lengths,
    check_rules,
    check_scalar,
    parse_space,
)
from tunnel.study.corpora import Data, Mix
from tunnel.study.lessons import Task, Teacher
from tunnel.study.means import Resources, check_server
from tunnel.study.money import Limit, Notify, Price
from tunnel.study.stages import Stage
from tunnel.study.values import Frozen, Name, Tokens


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
