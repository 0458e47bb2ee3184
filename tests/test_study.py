"""Study files: what is accepted, what is refused and in which words, and what a revision may add."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY

from tunnel import study
from tunnel.errors import UserError

STUDIES = Path(__file__).parent.parent / "studies"
Write = Callable[..., Path]

LR = "lr = { low = 1e-3, high = 1e-1 }"

BAD = [
    # what is written, in place of what; key; rule
    ('family = "synthetic"', 'family = "synthetic"\nrulez = "minicpm"', "rulez: is not a key of a study file", "rules"),
    ("head_dim = 16", "head_dim = 16\nbase_with = 32", "model.base_with: is not a key", "base_width"),
    ("trials = 4", "trails = 4", "stage.calibrate.budget.trails: is not a key", "trials"),
    ("depth = 8", 'depth = "eight"', "target.big.depth: input should be a valid integer", "got 'eight'"),
    ("depth = 8", "depth = 8.5", "target.big.depth: input should be a valid integer", "8.5"),
    ("trials = 4", "trials = 0", "stage.calibrate.budget.trials: input should be greater than 0", "got 0"),
    ("width = 128\n", "", "target.big.width: is missing", ""),
    (TINY[: TINY.index("family")], "", "question: is missing", ""),
    ('rungs = { tokens = ["50k", "100k"] }', "", "stage.ladder: a ladder needs shapes and rungs", ""),
    ('tokens = ["50k", "100k"]', "", "stage.ladder.rungs: rungs needs exactly one of tokens, tokens_per_param", ""),
    ('tokens = "1M"', 'tokens = "1 million"', "target.big.tokens: must be a number, or one with a unit", "1 million"),
    ('tokens = "1M"', "tokens = inf", "target.big.tokens: input should be a finite number", ""),
    ("width = 128", "width = nan", "target.big.width: input should be a finite number", ""),
    ("1e-3, high = 1e-1", "1e-1, high = 1e-3", "stage.calibrate: space.lr: low 0.1 must be below high 0.001", ""),
    (LR, "lr = 0.01", "stage.calibrate: space is empty: a search needs at least one range", ""),
    (LR, "lr = []", "stage.calibrate: space.lr is empty", ""),
    (LR, f"{LR}\nstep_size = 1", "stage.calibrate: space.step_size is not a setting", "choices: lr, warmup"),
    (
        "batch_tokens = 1024",
        "batch_tokens = 1024\nwarmup = 0.5\ndecay = 0.5",
        "train: warmup 0.5 + decay 0.5",
        "stable",
    ),
    (LR, LR + "\ndecay = 0.95\nwarmup = 0.06", "stage.calibrate: warmup 0.06 + decay 0.95 must be below 1", ""),
    ("width = 128", "width = 100", "target big: width 100 is not a multiple of model.head_dim 16", ""),
    ("[[32, 2]", "[[40, 2]", "stage ladder: width 40 is not a multiple of model.head_dim 16", ""),
    ("base_width = 32", "base_width = 33", "model.base_width: width 33 is not a multiple of model.head_dim 16", ""),
    (
        "  width = 32",
        "  width = { low = 32, high = 64, step = 24 }",
        "stage.calibrate: width is in the sampler's space, so the budget must be in flops",
        "at equal tokens the biggest shape would always win",
    ),
    (
        f'  width = 32\n  depth = 2\n  {LR}\n  [stage.budget]\n  trials = 4\n  tokens = "100k"',
        "  depth = 2\n  width = { low = 32, high = 64, step = 24 }\n  [stage.budget]\n  flops = 1e9",
        "stage calibrate: width 24 is not a multiple of model.head_dim 16",
        "",
    ),
    ('  tokens = "100k"', "", "stage.calibrate: budget needs exactly one of tokens, tokens_per_param, flops", ""),
    ("trials = 4", "trials = 4\nflops = 1e9", "stage.calibrate: budget needs exactly one of", ""),
    (
        "width = 128",
        "width = 128\nseq_len = 64",
        "target big: seq_len 64 differs from the proxies' 32; not comparable",
        "",
    ),
    (
        "width = 128",
        'width = 128\ntokenizer = "gpt2"',
        "target big: tokenizer gpt2 differs from the proxies' bytes",
        "",
    ),
    ("width = 128", "width = 128\nkv_heads = 3", "target big: kv_heads 3 does not divide its 8 heads", ""),
    (
        "  width = 32",
        "  width = 32\n  batch_tokens = { low = 1024, high = 4096 }",
        "stage calibrate: batch_tokens: low and step must be multiples of model.seq_len 32",
        "log = false",
    ),
    ('after = "calibrate"', 'after = "search"', "stage ladder: after names 'search', which is no earlier stage", ""),
    ('name = "ladder"', 'name = "calibrate"', "stage calibrate: the name is taken", ""),
    ('name = "ladder"', 'name = "../ladder"', "stage.../ladder.name: string should match pattern", "got '../ladder'"),
    ('name = "big"', 'name = "a/b"', "target.a/b.name: string should match pattern", ""),
    ('name = "big"', f'name = "{"b" * 300}"', "string should match pattern", "bbb..."),
    ('kind = "ladder"', 'kind = "batch"', "stage.ladder: batches belong to a batch or verdict stage", ""),
    (
        'kind = "ladder"',
        'kind = "staircase"',
        "stage.ladder.kind: input should be 'search', 'ladder', 'batch', 'verdict', 'noise', 'distill' or 'finetune'",
        "",
    ),
    ("fan = [0.5, 1, 2]", "fan = [0, 1]", "stage.ladder: fan holds factors of the learning rate, above 0", ""),
    (
        "fan = [0.5, 1, 2]",
        f"space.{LR}",
        "stage.ladder: lr: a ladder searches nothing; give shapes, fan, batches",
        "",
    ),
    (
        "batch_tokens = 1024",
        'batch_tokens = 1024\ndecay_shape = "sqrt"',
        "train: decay_shape 'sqrt' is unknown",
        "1-sqrt",
    ),
    (
        'family = "synthetic"',
        'family = "synthetic"\nrules = "mup"',
        "rules 'mup' is unknown; choices: minicpm, completep, standard",
        "mup",
    ),
    ("[model]", '[data]\ncorpus = "files"\n[model]', 'data: paths belong to corpus = "files", and it needs them', ""),
    ("[model]", '[data]\nhub_token = "hf_abc"\n[model]', "data.hub_token: looks like a secret", "environment"),
    ("[model]", "[model", "is not TOML", "line 3"),
]


@pytest.mark.parametrize(("old", "new", "rule", "more"), BAD, ids=[rule[:60] for *_, rule, _ in BAD])
def test_a_mistake_is_one_line_with_file_and_key(study_file: Write, old: str, new: str, rule: str, more: str) -> None:
    path = study_file((old, new))
    with pytest.raises(UserError) as e:
        study.load(path)
    line = str(e.value)
    assert line.startswith(f"{path}: ")
    assert rule.lower() in line.lower()
    assert more in line
    assert "\n" not in line
    assert "hf_abc" not in line


@pytest.mark.fault(15)
@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (b'question = "caf\xe9"', "is not UTF-8 at byte 15"),
        (b"\xff\xfeq\x00", "is not UTF-8 at byte 0"),
        (b"", "is missing"),
        (b'question = "a\x00b"', "is not TOML"),
        (b"a = " + b"[" * 5000, "is not TOML"),
        (b"#" * (1 << 16) + b"#", "has at most 65536 bytes"),
    ],
    ids=["latin-1", "utf-16", "empty", "NUL", "deep", "large"],
)
def test_files_that_are_no_study(tmp_path: Path, raw: bytes, rule: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=rule) as e:
        study.load(path)
    assert str(e.value).startswith(f"{path}: ")
    assert "\n" not in str(e.value)


@pytest.mark.fault(15)
@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("none.toml", "no such study file"),
        ("", "is not a file"),
        ("a b.toml", "a study's name"),
        ("-x.toml", "a study's"),
    ],
)
def test_paths_that_are_no_study(tmp_path: Path, path: str, rule: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=rule):
        study.load(tmp_path / (path or "folder"))


@pytest.mark.fault(15)
@pytest.mark.parametrize("change", [lambda b: b"\xef\xbb\xbf" + b, lambda b: b.replace(b"\n", b"\r\n")])
def test_a_mark_or_windows_line_ends_change_nothing(study_file: Write, change: Callable[[bytes], bytes]) -> None:
    path = study_file()
    plain = study.load(path)
    path.write_bytes(change(path.read_bytes()))
    assert study.load(path) == plain


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda p: p.stem)
def test_studies_that_ship_load(path: Path) -> None:
    loaded = study.load(path)
    assert loaded.question.endswith("?")
    if loaded.small:
        assert study.load(path, small=True) != loaded


def test_small_replaces_what_it_names(study_file: Write) -> None:
    small = '[small]\n"target.big.tokens" = "50k"\n"stage.ladder.rungs" = { tokens = ["20k"] }\n[[target]]'
    path = study_file(("[[target]]", small))
    full, less = study.load(path), study.load(path, small=True)
    assert (full.target[0].tokens, less.target[0].tokens) == (1_000_000, 50_000)
    assert less.stage_named("ladder").rungs == study.Rungs(tokens=(20_000,))
    assert less.stage_named("calibrate") == full.stage_named("calibrate")


@pytest.mark.parametrize(
    ("table", "rule"),
    [
        ('"stage.stairs.rungs" = 1', "small.stage.stairs.rungs: names nothing in this study"),
        ('"stage.ladder.rungz" = 1', "stage.ladder.rungz: is not a key"),
        ('"stage.ladder" = 1', "small.stage.ladder: names a list"),
        ("", "has no .small. table for --scale small"),
    ],
)
def test_small_that_names_nothing(study_file: Write, table: str, rule: str) -> None:
    path = study_file(("[[target]]", f"[small]\n{table}\n[[target]]"))
    with pytest.raises(UserError, match=rule):
        study.load(path, small=True)


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("trials = 4", "trials = 9", ""),
        ('tokens = "100k"', 'tokens = "100k"\nseeds = [0, 1]', ""),
        ('["50k", "100k"]', '["50k", "100k", "200k"]', ""),
        ('["50k", "100k"]', '["25k", "50k", "100k"]', "stage.ladder.rungs.tokens"),  # the warmup goes by the shortest
        ("fan = [0.5, 1, 2]", "fan = [0.5, 1, 2]\ndecays = [{ decay = 0.2 }]", "stage.ladder.decays"),
        ("fan = [0.5, 1, 2]", "fan = [0.5, 1, 2]\ndecays = [{}, { decay = 0.2 }]", ""),
        ("[model]", '[data]\n[[data.then]]\nfrom = "1M"\npaths = ["a"]\n[model]', ""),
        ("[[32, 2], [64, 4]]", "[[32, 2], [48, 3], [64, 4]]", ""),
        ("fan = [0.5, 1, 2]", "fan = [0.25, 0.5, 1, 2]", ""),
        ("[[target]]", '[small]\n"target.big.tokens" = "50k"\n[[target]]', ""),
        ("trials = 4", "trials = 3", "stage.calibrate.budget.trials"),
        ('["50k", "100k"]', '["100k"]', "stage.ladder.rungs.tokens"),
        ('tokens = "1M"', 'tokens = "2M"', "target.big.tokens"),
        ('tokens = "100k"', 'tokens = "200k"', "stage.calibrate.budget.tokens"),
        (LR, "lr = { low = 1e-3, high = 2e-1 }", "stage.calibrate.space.lr.high"),
        ("base_width = 32", "base_width = 64", "model.base_width"),
        ('question = "Which lr?"', 'question = "Which?"', ""),
        ("[resources]", "[budget]\nmax_hours = 3\n[resources]\npack = 4", ""),
    ],
)
def test_a_revision_may_only_add(study_file: Write, old: str, new: str, changed: str) -> None:
    before, after = study.load(study_file(name="a.toml")), study.load(study_file((old, new), name="b.toml"))
    assert study.changes(before, after) == changed
    assert study.changes(before, before) == ""


def test_a_value_is_frozen(study_file: Write) -> None:
    loaded = study.load(study_file())
    with pytest.raises(ValueError, match="frozen"):
        loaded.question = "another?"  # type: ignore[misc]


def test_the_schema_names_every_key() -> None:
    definitions = study.schema()["$defs"]
    assert set(definitions["Target"]["properties"]) == set(study.Target.model_fields)
    assert definitions["Stage"]["additionalProperties"] is False


REFUSED_TWICE = [
    ('tokens = "100k"', 'tokens = "100k"\nseeds = [0, 0]', "seeds"),
    ('tokens = "100k"', 'tokens = "100k"\nseeds = [-1]', "seeds"),
    ("fan = [0.5, 1, 2]", "fan = [0.5, 1, 2]\nbudget = { seeds = [] }", "seeds"),
    ("[[stage]]", '[[target]]\nname = "big"\nwidth = 256\ndepth = 8\ntokens = "1M"\n[[stage]]', "target: two targets"),
    ("fan = [0.5, 1, 2]", "fan = [1, 1]", "fan"),
    ("[[32, 2], [64, 4]]", "[[32, 2], [32, 2]]", "shapes"),
]


@pytest.mark.parametrize(("old", "new", "key"), REFUSED_TWICE)
def test_what_is_given_twice_or_not_at_all_is_refused(study_file: Write, old: str, new: str, key: str) -> None:
    with pytest.raises(UserError, match=key):
        study.load(study_file((old, new)))
