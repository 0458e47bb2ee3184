"""What single targets must get right, beside their golden files: what is in no package's parser, or is best effort."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from exporting import BATCH, a_run, recommended, shipped

from tunnel.errors import UserError
from tunnel.export import export, get, megatron_bridge, names, nanotron, targets
from tunnel.folder.store import Store
from tunnel.run import Joined, Mixed, RunSpec
from tunnel.sweeps import pipeline


def dropped(rate: float) -> RunSpec:
    run = a_run()
    return run.replaced(trunk=run.trunk.replaced(settings=run.trunk.settings.replaced(dropout=rate)))


@pytest.mark.parametrize(
    ("to", "file", "says"),
    [
        ("hf", "config.json", '"attention_dropout": 0.1'),
        ("llamafactory", "config.json", '"attention_dropout": 0.1'),
        ("axolotl", "config.json", '"attention_dropout": 0.1'),
        ("nemo_automodel", "config.json", '"attention_dropout": 0.1'),
        ("megatron", "megatron.args", "--attention-dropout 0.1"),
        ("megatron_bridge", "bridge.yaml", "attention_dropout: 0.1"),
    ],
)
def test_dropout_comes_over(to: str, file: str, says: str, tmp_path: Path) -> None:
    export(recommended(dropped(0.1)), to, tmp_path / "b", allow_lossy=True)
    assert says in (tmp_path / "b" / file).read_text()
    assert json.loads((tmp_path / "b" / "FIDELITY.json").read_text())["fields"]["dropout"]["how"] == "exact"


@pytest.mark.parametrize("to", ["torchtitan", "olmo_core", "nanotron"])
def test_dropout_that_cannot_come_over_is_lost(to: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no attention dropout, 0\.1 here; --allow-lossy"):
        export(recommended(dropped(0.1)), to, tmp_path / "b")
    said = export(recommended(dropped(0.1)), to, tmp_path / "b", allow_lossy=True)["fidelity"]
    assert "dropout" in said["impossible"]
    assert said["lossy"] == ["dropout"]
    assert export(recommended(dropped(0.0)), to, tmp_path / "c")["fidelity"]["lossy"] == []


RUNS = {
    "bf16, groups": a_run(kv_heads=2, precision="bf16", min_ratio=0.1, warmup=20),
    "no warmup": a_run(64, 4, rules="completep", decay_shape="linear", warmup=1),
    "standard": a_run(64, 2, rules="standard", decay_shape="cosine"),
}


@pytest.mark.parametrize("name", RUNS)
def test_bridge_says_what_megatron_says(name: str, tmp_path: Path) -> None:
    run = RUNS[name]
    for to in ("megatron", "megatron_bridge"):
        export(recommended(run), to, tmp_path / to, allow_lossy=True)
    bridge = yaml.safe_load((tmp_path / "megatron_bridge" / "bridge.yaml").read_text())
    lines = (tmp_path / "megatron" / "megatron.args").read_text().splitlines()[1:]
    flags = dict((f"{line} True").split()[:2] for line in lines)
    for flag, value in flags.items():
        for place in megatron_bridge.PLACES[flag]:
            section, key = place.split(".")
            assert str(bridge[section][key]) == value, place
    bf16 = run.trunk.settings.precision == "bf16"
    assert (bridge["mixed_precision"], bridge["optimizer"]["bf16"]) == ("bf16_mixed" if bf16 else None, bf16)
    assert len({(tmp_path / to / "selfcheck.json").read_text() for to in ("megatron", "megatron_bridge")}) == 1


# nanotron's own names of one layer and of what is around it, read in its models/qwen.py
NANOTRON: dict[str, str] = {
    "model.token_position_embeddings.pp_block.token_embedding.weight": "embedding",
    "model.decoder.0.pp_block.input_layernorm.weight": "vector",
    "model.decoder.0.pp_block.attn.qkv_proj.weight": "hidden",
    "model.decoder.0.pp_block.attn.o_proj.weight": "out",
    "model.decoder.0.pp_block.post_attention_layernorm.weight": "vector",
    "model.decoder.0.pp_block.mlp.gate_up_proj.weight": "hidden",
    "model.decoder.0.pp_block.mlp.down_proj.weight": "out",
    "model.final_layer_norm.pp_block.weight": "vector",
    "model.lm_head.pp_block.weight": "embedding",
}


def test_nanotrons_parameters_have_one_role_each() -> None:
    found = {n: [role for role, p in nanotron.PATTERNS.items() if re.search(p, n)] for n in NANOTRON}
    assert found == {n: [role] for n, role in NANOTRON.items()}


@pytest.mark.parametrize(("warmup", "style"), [(8, "linear"), (1, "constant")])
def test_nanotron_decays_and_warms_up(warmup: int, style: str, tmp_path: Path) -> None:
    """Its defaults would neither decay, nor start at the peak where there is no warmup."""
    run = a_run(warmup=warmup, min_ratio=0.1)
    said = export(recommended(run), "nanotron", tmp_path / "b")["fidelity"]["schedule"]
    config: dict[str, Any] = yaml.safe_load((tmp_path / "b" / "nanotron.yaml").read_text())
    lr = config["optimizer"]["learning_rate_scheduler"]
    assert lr["min_decay_lr"] == pytest.approx(0.1 * lr["learning_rate"])
    assert lr["lr_warmup_style"] == style
    assert lr["lr_decay_starting_step"] + lr["lr_decay_steps"] == config["tokens"]["train_steps"] == run.tokens // BATCH
    assert said["exact"] == (warmup == 1)


def changing(run: RunSpec, at: int = 10) -> RunSpec:
    """The run, with data that joins after so many steps, and a mix of its decay's own."""
    source = run.trunk.source
    more = source.replaced(then=(Joined(at=at * BATCH, share=0.25, source=source.replaced(corpus="late")),))
    mix = (Mixed(name="m", share=0.5, source=source.replaced(corpus="good")),)
    return run.replaced(trunk=run.trunk.replaced(source=more), mix=mix)


def test_what_a_job_must_read_is_in_its_readme(tmp_path: Path) -> None:
    export(recommended(changing(a_run())), "json", tmp_path / "b")
    text = (tmp_path / "b" / "README.md").read_text()
    assert "stdlib; 25% late from step 10 on; 50% good in the decay, from step 80 on" in text


@pytest.mark.parametrize("to", names())
def test_data_that_changes_is_lost_where_the_data_is_the_jobs_own(to: str, tmp_path: Path) -> None:
    """In `json` it stands, for a job that reads that; a mix of the whole trunk is no change."""
    run = a_run(precision="bf16")
    plain, mixed, whole = (
        export(recommended(r), to, tmp_path / str(i), allow_lossy=True)["fidelity"]
        for i, r in enumerate((run, changing(run), changing(run, at=0).replaced(mix=())))
    )
    lost = [] if to == "json" else ["data_joined", "decay_mix"]
    assert [k for k in mixed["lossy"] if k not in plain["lossy"]] == lost
    assert whole["lossy"] == plain["lossy"]
    if lost:
        with pytest.raises(UserError, match=r"--allow-lossy writes the nearest there is"):
            export(recommended(changing(run)), to, tmp_path / "b")
        fields = json.loads((tmp_path / "1" / "FIDELITY.json").read_text())["fields"]
        assert fields["decay_mix"]["how"] == fields["data_joined"]["how"] == "impossible"
        assert fields["decay_mix"]["reason"] == "the job itself must make its data 50% m from step 80 on"


def test_a_run_that_transformers_cannot_take_is_exported_as_data(tmp_path: Path) -> None:
    """`tunnel run` goes on to its target."""
    said: list[str] = []
    told, as_data = recommended(changing(a_run())), tmp_path / "export" / "json"
    for _ in range(2):
        assert pipeline.exported(Store(tmp_path), told, "hf", said.append) == as_data
    assert json.loads((as_data / "recommendation.json").read_text()) == told
    assert [p.name for p in as_data.parent.iterdir()] == ["json"]
    assert said[0].startswith("data_joined: the job itself must make its data 25% late from step 10 on")


def test_best_effort_is_said() -> None:
    listed = {t["name"]: t["status"] for t in targets()}
    assert {n for n, s in listed.items() if s == "best effort"} == {"nanotron", "megatron_bridge", "nemo_automodel"}
    assert {n for n, s in listed.items() if s == "refused"} == {"litgpt", "deepspeed", "llm_foundry", "nanochat"}
    assert all(get(n).CANNOT_CARRY for n, s in listed.items() if s == "best effort")


def applied(net: Any, optimizer: Any) -> None:
    """A job that does what the bundle says."""


def one_lr(net: Any, optimizer: Any) -> None:
    for group in optimizer.param_groups:
        group["lr"] = optimizer.param_groups[0]["lr"]


def theirs(net: Any, optimizer: Any) -> None:
    for p in net.parameters():
        p.data.normal_(std=0.02)


def plain(net: Any, optimizer: Any) -> None:
    net.config.logits_scaling = 1.0


def ungrouped(net: Any, optimizer: Any) -> None:
    optimizer.param_groups[0]["params"].pop()


WRONG = {
    applied: "",
    one_lr: "lr of ",
    theirs: "initial std of hidden",
    plain: "logits_scaling: 1.0, promised 4.0",
    ungrouped: "is in no group of the optimizer",
}


@pytest.mark.parametrize("what", WRONG, ids=lambda what: what.__name__)
@pytest.mark.parametrize("step", [0, 5, 10])
def test_selfcheck_ends_a_job_that_is_not_the_bundles(step: int, what: Any, tmp_path: Path) -> None:
    """At steps 0 and 10, and the initial weights at 0 only; it looks at no other step."""
    from transformers import AutoConfig, AutoModelForCausalLM

    export(recommended(a_run()), "hf", tmp_path / "b")
    hook, check = shipped(tmp_path / "b", "optimizer"), shipped(tmp_path / "b", "selfcheck")
    net = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "b"))
    hook.initialise(net)
    optimizer, schedule = hook.optimizers(net)
    for _ in range(step):
        optimizer.step()
        schedule.step()
    what(net, optimizer)
    if what is applied or step == 5 or (what is theirs and step):
        check.verify(net, optimizer, step, own_scheduler=False)
    else:
        with pytest.raises(SystemExit, match="not what the bundle says: .*" + re.escape(WRONG[what])):
            check.verify(net, optimizer, step, own_scheduler=False)
