"""The bundles against the real trainers: parsed, built, stepped and trained, and what must not be written."""

from __future__ import annotations

import csv
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from exporting import BATCH, SEQ, a_run, recommended, shipped

from tunnel.errors import UserError
from tunnel.export import REFUSED, _write, export, get, names, targets
from tunnel.families import gpt
from tunnel.folder.files import file_hash
from tunnel.run import RunSpec
from tunnel.schedule import SHAPES

GOLDEN = Path(__file__).with_name("golden") / "exports"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hf") / "bundle"
    export(recommended(a_run()), "hf", out)
    return out


def hook(bundle: Path) -> ModuleType:
    return shipped(bundle, "optimizer")


def arguments(bundle: Path, **more: Any) -> Any:
    """The bundle's TrainingArguments, by transformers' own parser."""
    import yaml
    from transformers import HfArgumentParser, TrainingArguments

    parser = HfArgumentParser(TrainingArguments)  # type: ignore[arg-type]
    if not more:
        return parser.parse_yaml_file(str(bundle / "training_args.yaml"))[0]
    return parser.parse_dict({**yaml.safe_load((bundle / "training_args.yaml").read_text()), **more})[0]


def model(bundle: Path) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(bundle))


def curve(bundle: Path, column: str) -> list[float]:
    with open(bundle / "schedule.csv", newline="") as f:
        return [float(row[column]) for row in csv.DictReader(f)]


def walked(scheduler: Any, optimizer: Any, steps: int) -> np.ndarray:
    """Each group's lr at every step, by stepping the real scheduler: (steps, groups)."""
    rows = []
    for _ in range(steps):
        rows.append([g["lr"] for g in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return np.array(rows)


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


# the registry


def test_every_file_of_the_folder_is_a_target() -> None:
    assert {"hf", "json", "torchtitan", "megatron", "llamafactory", "axolotl", "olmo_core"} <= set(names())
    for name in names():
        module = get(name)
        assert module.CARRIES
        assert module.CANNOT_CARRY
        assert callable(module.parts)
    listed = {t["name"]: t for t in targets()}
    assert set(listed) == {*names(), *REFUSED}
    assert all(t["status"] == "first class" or t["reason"] for t in listed.values())


@pytest.mark.parametrize(
    ("to", "says"), [("litgpt", "is refused"), ("../hf", "not"), ("_write", "not"), ("nobody", "not")]
)
def test_other_targets_are_refused_with_the_reason(to: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says) as e:
        export(recommended(a_run()), to, tmp_path / "b")
    assert f"choices: {', '.join(names())}" in str(e.value)
    assert not list(tmp_path.iterdir())


# what every bundle holds


@pytest.mark.parametrize(("to", "family"), [("hf", "gpt"), ("json", "gpt"), ("json", "synthetic")])
def test_a_bundle_is_whole_and_the_same_every_time(to: str, family: str, tmp_path: Path) -> None:
    recommendation = recommended(a_run(family=family))
    said = export(recommendation, to, tmp_path / "a")
    export(recommendation, to, tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert {n: file_hash(tmp_path / "a" / n) for n in manifest["files"]} == manifest["files"]
    assert said["files"] == [*manifest["files"], "manifest.json"] == [*sorted(manifest["files"]), "manifest.json"]
    assert set(content(tmp_path / "a")) == set(said["files"])
    assert json.loads((tmp_path / "a" / "recommendation.json").read_text()) == recommendation
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("decay_shape", SHAPES)
def test_schedule_csv_is_the_runs_own_curve(decay_shape: str, tmp_path: Path) -> None:
    run = a_run(decay_shape=decay_shape, min_ratio=0.1)
    export(recommended(run), "json", tmp_path / "b")
    tokens = curve(tmp_path / "b", "tokens")
    assert tokens == [s * BATCH for s in range(100)]
    assert curve(tmp_path / "b", "multiplier") == [run.multiplier(int(t)) for t in tokens]
    assert curve(tmp_path / "b", "lr") == [0.01 * run.multiplier(int(t)) for t in tokens]


SAME_IN_ALL = {"recommendation.json", "schedule.csv", "manifest.json", "tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize("to", [n for n in names() if n != "json"])
def test_golden(to: str, tmp_path: Path) -> None:
    """A bundle's own files, byte for byte; GOLDEN=write in the environment writes them anew, after a wanted change."""
    run = a_run(warmup=4, steps=20, decay=5, kv_heads=2, rules="completep")
    export(recommended(run), to, tmp_path / "b", allow_lossy=True, world_size=2)
    shipped_as_they_are = {p.read_bytes() for p in Path(_write.__file__).parent.glob("_*.py")}
    ours = {n: b for n, b in content(tmp_path / "b").items() if n not in SAME_IN_ALL and b not in shipped_as_they_are}
    if os.environ.get("GOLDEN") == "write":
        (GOLDEN / to).mkdir(parents=True, exist_ok=True)
        for name, written in ours.items():
            (GOLDEN / to / name).write_bytes(written)
    assert {p.name: p.read_bytes().decode() for p in (GOLDEN / to).iterdir()} == {
        n: b.decode() for n, b in ours.items()
    }


def test_a_batch_is_divided_among_the_processes(tmp_path: Path) -> None:
    """Eight sequences, of which two fit at a time: always the same batch, or one line."""
    for world, per_device, accumulation in [(1, 4, 2), (2, 4, 1), (4, 2, 1), (8, 1, 1)]:
        export(recommended(a_run()), "hf", tmp_path / str(world), world_size=world)
        args = arguments(tmp_path / str(world))
        assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (per_device, accumulation)
    for world in (0, 3, 16):
        with pytest.raises(UserError, match=r"--world-size: does not divide the batch of 8.*choices: 1, 2, 4, 8"):
            export(recommended(a_run()), "hf", tmp_path / "b", world_size=world)


@pytest.mark.parametrize("decay_shape", SHAPES)
def test_a_long_decay_in_straight_pieces_is_near(decay_shape: str, tmp_path: Path) -> None:
    """olmo_core's stages, where they are fewer than the decay's steps."""
    run = a_run(64, 2, steps=3000, decay=2900, warmup=100, decay_shape=decay_shape)
    judged = export(recommended(run), "olmo_core", tmp_path / "b")["fidelity"]["schedule"]
    assert judged["max_difference"] < 1e-3
    assert abs(judged["sum_difference"]) < 0.1
    assert len(json.loads((tmp_path / "b" / "olmo.json").read_text())["stages"]) < 2048


def test_an_export_imports_no_heavy_library(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(recommended(a_run())))
    code = (
        "import json, sys; from pathlib import Path; from tunnel.export import export, targets\n"
        "targets(); export(json.load(open('r.json')), 'hf', Path('b'))\n"
        "print([m for m in ('torch', 'transformers', 'ray', 'optuna') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# hf: the model


@pytest.mark.parametrize(
    "run", [a_run(), a_run(kv_heads=2, rules="completep"), a_run(64, 3, rules="standard")], ids=lambda r: r.trunk.rules
)
def test_transformers_builds_the_tunnels_model(run: RunSpec, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, GraniteConfig, GraniteForCausalLM

    from tunnel.training import train

    export(recommended(run), "hf", tmp_path / "b")
    wanted = gpt.config_dict(run.trunk.shape, run.trunk.body, run.trunk.rules)
    for config in (AutoConfig.from_pretrained(tmp_path / "b"), GraniteConfig.from_pretrained(tmp_path / "b")):
        assert isinstance(config, GraniteConfig)
        assert {k: getattr(config, k) for k in wanted} == wanted
    theirs = model(tmp_path / "b")
    assert isinstance(theirs, GraniteForCausalLM)
    assert theirs.dtype == torch.float32
    selfcheck = json.loads((tmp_path / "b" / "selfcheck.json").read_text())
    assert sum(p.numel() for p in theirs.parameters()) == selfcheck["parameters"]
    assert selfcheck["non_embedding_parameters"] == gpt.count(run.trunk.shape, run.trunk.body)

    hook(tmp_path / "b").initialise(theirs)
    ours = GraniteForCausalLM(GraniteConfig(**wanted))
    train.initialise(train.grouped(ours, gpt.ROLES, run.trunk), run.trunk)
    for (name, a), (other, b) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(a, b), name
    tokens = torch.arange(SEQ)[None]
    with torch.no_grad():
        assert torch.equal(theirs(input_ids=tokens).logits, ours(input_ids=tokens).logits)


def test_the_hooks_groups_are_the_recommendations_and_cover_every_parameter(bundle: Path) -> None:
    net = model(bundle)
    optimizer = hook(bundle).adamw(net)
    wanted = {g["role"]: g for g in recommended(a_run())["groups"]}
    assert {g["role"] for g in optimizer.param_groups} == set(wanted)
    for group in optimizer.param_groups:
        assert {k: group[k] for k in ("lr", "weight_decay", "eps")} == {
            k: wanted[group["role"]][k] for k in ("lr", "weight_decay", "eps")
        }
        assert group["betas"] == (0.9, 0.95)
    held = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters())
    assert len(set(held)) == len(held)
    net.extra = type(net.lm_head)(2, 2)
    with pytest.raises(ValueError, match=r"extra\.weight matches no group"):
        hook(bundle).adamw(net)


# hf: the arguments and the schedule


def test_training_arguments_parse_to_the_settings(bundle: Path) -> None:
    args = arguments(bundle)
    got = {
        "max_steps": 100,
        "learning_rate": 0.01,
        "weight_decay": 0.1,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-8,
        "max_grad_norm": 1.0,
        "bf16": False,
        "seed": 3,
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": 20, "decay_type": "1-sqrt", "min_lr_ratio": 0.0},
    }
    assert {k: getattr(args, k) for k in got} == got
    assert args.get_warmup_steps(args.max_steps) == 7
    assert args.world_size == 1
    sequences = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    assert sequences * SEQ == BATCH
    assert args.per_device_train_batch_size * SEQ == BATCH // 2


def test_bf16_is_said(tmp_path: Path) -> None:
    export(recommended(a_run(precision="bf16")), "hf", tmp_path / "b")
    assert arguments(tmp_path / "b", use_cpu=True).bf16


SCHEDULES = [
    *({"decay_shape": s, "warmup": w, "min_ratio": r} for s in SHAPES for w, r in [(8, 0.0), (8, 0.25), (20, 0.1)]),
    *({"warmup": w} for w in (0, 1, 2, 3, 50)),
    {"warmup": 10, "decay": 90, "decay_shape": "cosine"},  # the cosine baseline: no stable phase
    {"decay": 1},
    {"warmup": 0, "steps": 2, "decay": 1},
]


@pytest.mark.parametrize("asked", SCHEDULES, ids=lambda a: "-".join(map(str, a.values())))
def test_both_schedulers_stepped(asked: dict[str, Any], tmp_path: Path) -> None:
    """The Trainer's own stays in EXPORT.md's tolerance, the hook's is the curve; FIDELITY.json says what is true."""
    import torch
    from transformers import get_scheduler

    run = a_run(32, 2, **asked)
    lossy = run.decay_shape == "exponential"
    said = export(recommended(run), "hf", tmp_path / "b", allow_lossy=lossy)
    args, steps = arguments(tmp_path / "b"), run.tokens // BATCH
    wanted = np.array(curve(tmp_path / "b", "multiplier"))

    def optimizer() -> Any:
        return torch.optim.SGD([{"params": [torch.zeros(1)], "lr": lr} for lr in (0.01, 0.0025)])

    own = optimizer()
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        own,
        num_warmup_steps=args.get_warmup_steps(steps),
        num_training_steps=args.max_steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    difference = walked(scheduler, own, steps) / [0.01, 0.0025] - wanted[:, None]
    judged = said["fidelity"]["schedule"]
    assert np.abs(difference).max() == pytest.approx(judged["max_difference"], abs=1e-9)
    assert difference.sum(axis=0) == pytest.approx([judged["sum_difference"]] * 2, abs=1e-9)
    if not lossy:
        warmup = run.trunk.settings.warmup // BATCH
        assert np.abs(difference).max() <= (1 / warmup if warmup > 1 else 0) + 1e-9
        assert np.abs(difference.sum(axis=0)).max() <= 1 + 1e-9
        assert np.abs(difference[warmup:]).max() <= 1e-9  # stable and decay agree step by step

    exact = optimizer()
    assert (walked(hook(tmp_path / "b").schedule(exact), exact, steps) == wanted[:, None] * [0.01, 0.0025]).all()


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        ({"decay_shape": "exponential"}, "decay_shape: exponential is not a decay of transformers' WSD"),
        ({"warmup": 50, "min_ratio": 0.1}, "schedule: hf steps it otherwise: up to 0.08"),
    ],
)
def test_what_transformers_cannot_express_fails_unless_lossy(asked: dict[str, Any], key: str, tmp_path: Path) -> None:
    recommendation = recommended(a_run(32, 2, **asked))
    with pytest.raises(UserError) as e:
        export(recommendation, "hf", tmp_path / "b")
    assert str(e.value).startswith(key)
    assert "--allow-lossy" in str(e.value)
    assert not list(tmp_path.iterdir())
    said = export(recommendation, "hf", tmp_path / "b", allow_lossy=True)
    assert said["fidelity"]["lossy"] == list(json.loads((tmp_path / "b" / "FIDELITY.json").read_text())["lossy"]) != []


# hf: real training


def test_the_trainer_with_the_bundle_trains_what_the_tunnel_trains(tmp_path: Path) -> None:
    """Twelve steps of transformers' Trainer, by the bundle, against the tunnel's own, on the same tokens."""
    import torch
    from torch.utils.data import Dataset
    from transformers import GraniteConfig, GraniteForCausalLM, Trainer, TrainerCallback

    from tunnel.training.data import Corpus
    from tunnel.training.train import Trained

    run = a_run(48, 3, warmup=3, steps=12, decay=4)
    export(recommended(run), "hf", tmp_path / "b")
    tokens = np.random.default_rng(0).integers(0, 9, 60_000).cumsum() % 256  # learnable: small steps forward
    corpus = Corpus(tokens[:50_000], tokens[50_000:], bytes_per_token=1.0, hash="")
    config = GraniteConfig(**gpt.config_dict(run.trunk.shape, run.trunk.body, "minicpm"))
    ours = Trained(lambda: GraniteForCausalLM(config), gpt.ROLES, run.trunk, corpus)
    before = ours.evaluate()
    while ours.tokens < run.tokens:
        ours.step(run.multiplier(ours.tokens))

    class Sequences(Dataset):
        def __len__(self) -> int:
            return run.tokens // SEQ

        def __getitem__(self, i: int) -> dict[str, Any]:
            sequence = corpus.sequences(run.trunk.seed, i, 1, SEQ)[0]
            return {"input_ids": sequence, "labels": sequence}

    found: dict[int, list[str]] = {}

    class Check(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in (0, 10):
                step = state.global_step
                found[step] = shipped(tmp_path / "b", "selfcheck").differences(theirs, optimizers[0], step, False)

    args = arguments(
        tmp_path / "b",
        output_dir=str(tmp_path / "out"),
        train_sampling_strategy="sequential",
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    own, theirs = hook(tmp_path / "b"), model(tmp_path / "b")
    own.initialise(theirs)
    optimizers = own.optimizers(theirs)
    trainer = Trainer(model=theirs, args=args, train_dataset=Sequences(), optimizers=optimizers, callbacks=[Check()])
    trainer.train()

    assert trainer.state.global_step == 12
    assert found == {0: [], 10: []}
    trained = ours.evaluate()
    for a, b in zip(ours.model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=2e-4)
    ours.model = theirs
    assert trained < before - 0.3
    assert ours.evaluate() == pytest.approx(trained, rel=1e-4)


# bad input


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in recommended(a_run()).items() if k != key}


def changed(**fields: Any) -> dict[str, Any]:
    return {**recommended(a_run()), **fields}


ONE = recommended(a_run())
BAD: dict[str, tuple[Any, str]] = {
    "not an object": ([], "is of another schema"),
    "another schema": (changed(schema=2), "got 2; choices: 1"),
    "no groups": (without("groups"), "recommendation.json: groups: is missing"),
    "half a group": (changed(groups=[{"role": "hidden"}]), "groups.0: lacks pattern"),
    "a broken run": (changed(run={**ONE["run"], "decay_tokens": "x"}), "run.decay_tokens: Input should be"),
    "half batches": (changed(run={**ONE["run"], "decay_tokens": 700}), "run.decay_tokens: is not whole batches"),
    "not a number": (changed(forecast=float("nan")), "cannot be written as JSON"),
    "another config": (changed(config={**ONE["config"], "hidden_size": 96}), "is not the config of its own run"),
    "synthetic": (recommended(a_run(family="synthetic")), "not a model that transformers builds"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_recommendation_is_one_line_and_writes_nothing(name: str, tmp_path: Path) -> None:
    recommendation, says = BAD[name]
    with pytest.raises(UserError) as e:
        export(recommendation, "hf", tmp_path / "b")
    assert says in str(e.value)
    assert "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.fault(19)
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["link", "dangling", "file", "full", "fifo"])
def test_an_export_takes_no_ones_place(kind: str, force: bool, tmp_path: Path) -> None:
    out, other = tmp_path / "b", tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    if kind == "full":
        out = other
    elif kind == "file":
        out.write_text("mine")
    elif kind == "fifo":
        os.mkfifo(out)
    else:
        out.symlink_to(other if kind == "link" else tmp_path / "nowhere")
    with pytest.raises(UserError):
        export(ONE, "json", out, force=force)
    assert content(other) == {"mine.txt": b"mine"}
    assert not (tmp_path / "nowhere").exists()
    assert {p.name for p in tmp_path.iterdir()} <= {"b", "other"}


@pytest.mark.fault(16)
@pytest.mark.parametrize("name", ["a\0b", "n" * 300, "file/b"])
def test_a_place_that_cannot_be_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written") as e:
        export(ONE, "json", tmp_path / name)
    assert "\n" not in str(e.value)


@pytest.mark.fault(19)
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(UserError, match="Permission denied"):
        export(ONE, "json", tmp_path / "b")


@pytest.mark.fault(19)
def test_a_root_that_takes_nothing_is_one_line() -> None:
    with pytest.raises(UserError, match="cannot be written"):
        export(ONE, "json", Path("/proc/self/bundle"))


@pytest.mark.fault(19)
def test_force_replaces_a_bundle_and_only_that(tmp_path: Path) -> None:
    out = tmp_path / "b"
    export(ONE, "hf", out)
    (out / "__pycache__").mkdir()  # left by importing the hook
    with pytest.raises(UserError, match="exists"):
        export(ONE, "json", out)
    export(ONE, "json", out, force=True)
    assert "config.json" not in content(out)
    assert not (out / "__pycache__").exists()
    (out / "weights").mkdir()
    with pytest.raises(UserError, match=r"holds what no export wrote.*weights"):
        export(ONE, "hf", out, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


@pytest.mark.fault(19)
def test_a_link_to_a_bundle_is_not_followed(tmp_path: Path) -> None:
    export(ONE, "json", tmp_path / "real")
    before = content(tmp_path / "real")
    (tmp_path / "b").symlink_to(tmp_path / "real")
    with pytest.raises(UserError, match="symbolic link"):
        export(changed(question="another"), "json", tmp_path / "b", force=True)
    assert content(tmp_path / "real") == before
    assert (tmp_path / "b").is_symlink()


@pytest.mark.fault(19)
def test_force_does_not_reach_through_a_link_inside_the_old_bundle(tmp_path: Path) -> None:
    out, mine = tmp_path / "b", tmp_path / "mine"
    mine.write_text("mine")
    export(ONE, "json", out)
    (out / "schedule.csv").unlink()
    (out / "schedule.csv").symlink_to(mine)
    export(ONE, "json", out, force=True)
    assert mine.read_text() == "mine"
    assert not (out / "schedule.csv").is_symlink()


@pytest.mark.fault(5)
def test_a_full_disk_leaves_the_old_bundle(tmp_path: Path) -> None:
    out = tmp_path / "b"
    export(ONE, "json", out)
    before = content(out)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # bytes a file may have
    try:
        with pytest.raises(UserError, match="cannot be written: File too large"):
            export(changed(question="another"), "hf", out, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert content(out) == before
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


@pytest.mark.fault(7)
def test_a_kill_leaves_the_old_bundle_or_the_new(tmp_path: Path) -> None:
    """SIGKILL after every system call's worth of lines in `write`, in a process of its own."""
    old, new = ONE, changed(question="another")
    export(old, "json", tmp_path / "old")
    export(new, "json", tmp_path / "new")
    whole = [content(tmp_path / "old"), content(tmp_path / "new")]
    seen = set()
    for line in range(1, 40):
        out = tmp_path / f"b{line}"
        export(old, "json", out)
        if (pid := os.fork()) == 0:
            left = line

            def count(frame: Any, event: str, arg: Any) -> Any:
                nonlocal left
                if frame.f_code.co_filename != _write.__file__:
                    return None
                left -= event == "line" and frame.f_code.co_name in ("write", "exchange")
                if left == 0:
                    os.kill(os.getpid(), 9)
                return count

            sys.settrace(count)
            export(new, "json", out, force=True)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert content(out) in whole, f"after {line} lines"
        seen.add((whole.index(content(out)), os.WIFSIGNALED(status)))
    assert {(0, True), (1, True), (1, False)} <= seen
