"""Distillation: a student learns a teacher's soft targets where tokens are hidden, and its hidden states (SCIENCE §7).

What a teacher says of a sequence is computed once on a machine, and shared by all students that see it (same data,
seed and masking): hidden states by layer, and what its readout reads where tokens are hidden. Kept are half-precision
numbers, and these are what every student learns from, whoever computed them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.nn import functional as F

from tunnel.errors import UserError
from tunnel.families import State
from tunnel.families.encoder import config_dict, layer_map
from tunnel.run import Checkpoint, Lesson, TrunkSpec, fingerprint
from tunnel.training import data
from tunnel.training.masking import IGNORED, Masked
from tunnel.training.teachers import digest
from tunnel.training.train import EVAL_TOKENS

CHUNK = 64  # sequences of a file: what a batch asks for is a part of one or two  *assumed*
MOST = 8 << 30  # bytes that a machine keeps of all teachers, unless TUNNEL_LESSONS says otherwise  *assumed*
RECENT = 24  # arrays that a process keeps at hand: two chunks of a deep teacher  *assumed*
HEAD = "head"  # what the readout reads


def size_of(teacher: Any) -> tuple[int, int]:
    """A teacher's width and depth."""
    if not isinstance(teacher, Checkpoint):
        return teacher.trunk.shape.width, teacher.trunk.shape.depth
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(teacher.name)
    return config.hidden_size, config.num_hidden_layers


def with_projection(
    build: Callable[[], torch.nn.Module], trunk: TrunkSpec, lesson: Lesson
) -> Callable[[], torch.nn.Module]:
    """A student with a linear map to each hidden state of a teacher of another width; it is no part of N."""

    def built() -> torch.nn.Module:
        model, own, theirs = build(), trunk.shape.width, size_of(lesson.teacher)[0]
        maps = [torch.nn.Linear(own, theirs, bias=False) for _ in range(trunk.shape.depth + 1)]
        model.projection = torch.nn.ModuleList(maps if own != theirs else [])
        return model

    return built


class Student(Masked):
    """`Masked` with a lesson for a loss; what is held out is measured as of any other encoder.

    A batch is (sequences, inputs, labels and place, T).
    """

    teacher: Teacher

    def begin(self, others: Mapping[str, State]) -> None:
        super().begin(others)
        assert self.trunk.lesson is not None
        self.lesson = self.trunk.lesson
        self.teacher = Teacher(self, self.lesson.teacher, others.get("teacher"))
        depth = size_of(self.lesson.teacher)[1]
        self.layers = layer_map(self.lesson.layer_map, self.trunk.shape.depth, depth)
        self.ceiling = math.inf  # a lesson has another scale than a loss: hopeless is what reads so when held out

    def heirs(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((k, p) for k, p in self.model.named_parameters() if not k.startswith("projection."))

    def batch(self) -> torch.Tensor:
        pair, first = super().batch(), self.tokens // self.trunk.body.seq_len
        place = torch.arange(first, first + len(pair), device=self.device)[:, None].expand(-1, pair.shape[-1])
        return torch.cat([pair, place[:, None]], dim=1)

    def weighed(self, part: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """Soft targets count by hidden tokens, hidden states by sequences: micro-batches add up to the batch."""
        soft, states = self.lessons(part)
        told = self.lesson.soft_weight * self.lesson.temperature**2 * soft * self.share(part, batch)
        return told + self.lesson.hidden_weight * states * (len(part) / len(batch))

    def lessons(self, part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy at the lesson's temperature, and mean square over layers, positions and channels."""
        model, where, heat = cast(Any, self.model), part[:, 1] != IGNORED, self.lesson.temperature
        seen = model.bert(input_ids=part[:, 0], output_hidden_states=True)
        head, states = self.teacher.says(int(part[0, 2, 0]), where, self.layers)
        target = F.softmax(self.teacher.logits(head) / heat, dim=-1)
        told = F.log_softmax(model.cls(seen.last_hidden_state[where]).float() / heat, dim=-1)
        maps = list(model.projection) or [torch.nn.Identity()] * len(self.layers)
        off = [F.mse_loss(m(h).float(), s) for m, h, s in zip(maps, seen.hidden_states, states, strict=True)]
        return -(target * told).sum(-1).mean(), torch.stack(off).mean()


class Teacher:
    """What a teacher says of a student's sequences: kept, or computed a chunk at a time and then kept."""

    def __init__(self, student: Student, who: Any, state: State | None) -> None:
        self.student, self.who, self.state = student, who, state
        self.name = who.digest if isinstance(who, Checkpoint) else who.fingerprint
        self.model: Any = None  # only where something is not kept
        self.recent: dict[Path, np.ndarray] = {}
        rows, bias = self.readout()
        if rows.shape[0] != student.trunk.body.vocab:
            rule = f"has {rows.shape[0]} tokens, the students {student.trunk.body.vocab}: they need one tokenizer"
            raise UserError(rule, key="teacher", value=self.name)
        self.rows, self.bias = rows.to(student.device), bias.to(student.device)

    def readout(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The matrix and bias that make logits."""
        if self.state is None:
            predictions = self.loaded().cls.predictions
            return predictions.decoder.weight.detach(), predictions.bias.detach()
        names = "model.bert.embeddings.word_embeddings.weight", "model.cls.predictions.bias"
        weight, bias = (torch.from_numpy(np.array(self.state[0][n])) for n in names)
        return weight, bias

    def logits(self, head: torch.Tensor) -> torch.Tensor:
        return head @ self.rows.T + self.bias

    def says(self, first: int, where: torch.Tensor, layers: tuple[int, ...]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """What the readout reads (hidden tokens, d) and the hidden states (n, T, d) of sequences first …, in fp32."""
        n = len(where)
        heads, states = list[np.ndarray](), [list[np.ndarray]() for _ in layers]
        for chunk in range(first // CHUNK, (first + n - 1) // CHUNK + 1):
            at = slice(max(first - chunk * CHUNK, 0), min(first + n - chunk * CHUNK, CHUNK))
            heads.append(self.part(chunk, HEAD, layers)[at])
            for found, layer in zip(states, layers, strict=True):
                found.append(self.part(chunk, str(layer), layers)[at])

        def whole(parts: list[np.ndarray]) -> torch.Tensor:
            return torch.from_numpy(np.concatenate(parts)).to(self.student.device).float()

        head = whole(heads)  # (n, most, d): a sequence's hidden tokens, in order, and then nothing
        counts = where.sum(dim=1)
        there = torch.arange(head.shape[1], device=head.device) < counts[:, None]
        return head[there], [whole(s) for s in states]

    def part(self, chunk: int, what: str, layers: tuple[int, ...]) -> np.ndarray:
        """A chunk's array of half-precision numbers."""
        path = self.place / f"{chunk:08d}.{what}.npy"
        if path not in self.recent:
            found = kept(path)
            fresh = {path: found} if found is not None else self.computed(chunk, layers)
            self.recent = dict([*self.recent.items(), *fresh.items()][-max(RECENT, len(layers) + 1) :])
        return self.recent[path]

    @property
    def place(self) -> Path:
        """The folder of what it says of the stream that the student reads now."""
        s = self.student
        stream = [s.corpus.hash, *([j.at, j.share, j.corpus.own] for j in (*s.corpus.then, *s.corpus.blend))]
        read = [s.trunk.body.seq_len, s.trunk.seed, s.trunk.settings.masking, s.trunk.source.tokenizer]
        return folder() / fingerprint([self.name, stream, read, CHUNK, s.device.type])

    @torch.no_grad()
    def computed(self, chunk: int, layers: tuple[int, ...]) -> dict[Path, np.ndarray]:
        """What the model says of a chunk, always the whole of it: its bits do not go by who asks, or for what."""
        s, model = self.student, self.loaded()
        t, first, seed = s.trunk.body.seq_len, chunk * CHUNK, s.trunk.seed
        pairs = s.masks(s.corpus.sequences(seed, first, CHUNK, t), s.trunk.settings.masking, seed, first)
        states: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
        heads: list[torch.Tensor] = []
        most = int((pairs[:, 1] != IGNORED).sum(dim=1).max())
        for part in pairs.split(max(EVAL_TOKENS // t, 1)):
            seen, where = model.bert(input_ids=part[:, 0], output_hidden_states=True), part[:, 1] != IGNORED
            head = model.cls.predictions.transform(seen.last_hidden_state[where])
            room = torch.zeros(len(part), most, head.shape[-1], device=head.device)
            room[torch.arange(most, device=head.device) < where.sum(dim=1)[:, None]] = head
            heads.append(room)
            for layer in states:
                states[layer].append(seen.hidden_states[layer])
        found = {HEAD: heads} | {str(k): v for k, v in states.items()}
        place = self.place
        arrays = {place / f"{chunk:08d}.{k}.npy": torch.cat(v).half().cpu().numpy() for k, v in found.items()}
        for path, array in arrays.items():
            keep(path, array)
        evict(most_kept())
        return arrays

    def loaded(self) -> Any:
        if self.model is None:
            with torch.random.fork_rng():  # a model that is made draws numbers, and not every student makes one
                self.model = self.checkpoint() if self.state is None else self.run(*self.state)
            self.model.to(self.student.device).eval()
        return self.model

    def run(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Any:
        from transformers import BertConfig, BertForMaskedLM

        trunk = self.who.trunk
        model = BertForMaskedLM(BertConfig(**config_dict(trunk.shape, trunk.body, trunk.rules)))
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(torch.from_numpy(np.array(arrays[f"model.{name}"])))
        return model

    def checkpoint(self) -> Any:
        """Raises UserError where it is no BERT, or another one than the study began with."""
        from transformers import AutoModelForMaskedLM

        if digest(self.who.name) != self.who.digest:
            raise UserError("changed since the study began with it", key="teacher", value=self.who.name)
        model = AutoModelForMaskedLM.from_pretrained(self.who.name)
        if not hasattr(model, "bert") or not hasattr(model, "cls"):
            raise UserError(f"is no BERT with a masked-LM head, but {type(model).__name__}", value=self.who.name)
        return model


def most_kept() -> int:
    return int(os.environ.get("TUNNEL_LESSONS", MOST))


def folder() -> Path:
    return data.cache() / "lessons"


def kept(path: Path) -> np.ndarray | None:
    """What was kept; None where there is nothing that can be read."""
    try:
        os.utime(path)  # what was used last goes last
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None


def keep(path: Path, array: np.ndarray) -> None:
    """Keeps an array, whole or not at all; a full disk keeps nothing."""
    if array.nbytes > most_kept():
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            np.save(file, array)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)


def evict(most: int) -> None:
    """Removes what was not used for longest, down to `most` bytes."""
    files = [(p, p.stat()) for p in folder().glob("*/*.npy") if p.exists()]
    over = sum(s.st_size for _, s in files) - most
    for path, stat in sorted(files, key=lambda f: f[1].st_mtime):
        if over <= 0:
            return
        path.unlink(missing_ok=True)
        over -= stat.st_size
