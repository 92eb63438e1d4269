"""Every refusal of a sweep file: its words and its line."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sweep_files import MINIMAL

from orchestrator.methods import METHODS
from orchestrator.sweep_file import Sweep, SweepFileError, load_sweep
from orchestrator.sweep_file.grids_and_ranges import Grid, Range
from orchestrator.sweep_file.sections import MOST_TRIALS


def test_every_mistake_is_reported_at_once_on_its_line(
    problems: Callable[..., list[str]], tmp_path: Path
) -> None:
    text = """\
name: my sweep
data: {name: digts, validation_share: 1.5}
backbone:
  name: conv
  depth: {grid: [4,
                 5]}
  dropot: 0.1
  batch_norm: yes
training:
  epochs: 2.5
  batch_size: '64'
  schedule: one_cyle
fine_tuning: {epochs: {int: [3, 1]}}
methods:
  l1_flter: {}
  l1_filter:
    keep_ratio: {uniform: [0.2, 1.5]}
  magnitude: {threshold: 0}
  dense: 5
seeds: [0, 1, 0]
objectives:
  val_accuracy: minimize
  multiplication: minimize
search: {sampler: tpee, trials: 0}
resources: {cpus: 0, gpus: 1.5}
serch: {}
"""
    assert problems(text, "training.momentum=1", data_root=tmp_path) == [
        "my.yaml:1: name: expected the name of a folder, of at most 100 letters, digits, '_', '-' "
        "and '.', got 'my sweep'. Give another with name: in the file, or with --set name=...",
        "my.yaml:2: data.validation_share: expected less than 1, got 1.5.",
        "my.yaml:2: unknown data set 'digts'. Did you mean 'digits'? Known: cifar10, cifar100, "
        "digits, lfw3. Or name a .npz file, a folder with one sub-folder of images per class, or "
        "a function as package.module:function.",
        "my.yaml:6: backbone.depth: expected 4, 6 or 8, got 5.",
        "my.yaml:7: backbone: unknown option 'dropot'. Did you mean 'dropout'? Known: batch_norm, "
        "channels, depth, dropout, hidden, pool_after, width.",
        "my.yaml:8: backbone.batch_norm: expected true or false, got 'yes'. Write true.",
        "my.yaml:10: training.epochs: expected a whole number, got 2.5.",
        "my.yaml:11: training.batch_size: expected a whole number, got '64'. Remove the quotes.",
        "my.yaml:12: training.schedule: expected 'one_cycle' or 'cosine', got 'one_cyle'. "
        "Did you mean 'one_cycle'?",
        "my.yaml:13: fine_tuning.epochs: int goes from low to high, got 3 to 1.",
        "my.yaml:15: unknown method 'l1_flter'. Did you mean 'l1_filter'? Known: "
        f"{', '.join(sorted(METHODS))}. Or package.module:Class.",
        "my.yaml:17: methods.l1_filter.keep_ratio: expected at most 1, got 1.5.",
        "my.yaml:18: methods.magnitude.threshold: expected more than 0, got 0.",
        "my.yaml:19: methods.dense: expected options like {name: value}, got 5.",
        "my.yaml:20: seeds: expected each seed once, got twice or more: 0.",
        "my.yaml:22: objectives.val_accuracy: expected 'maximize', got 'minimize'. "
        "Did you mean 'maximize'?",
        "my.yaml:23: objectives: unknown option 'multiplication'. Did you mean "
        "'multiplications'? Known: bit_operations, footprint_bytes, latency_ms, mean_bits, "
        "multiplications, nonzero_multiplications, parameters, val_accuracy, "
        "winograd_multiplications.",
        "my.yaml:24: search.sampler: expected 'tpe', 'nsga2', 'random' or 'grid', got 'tpee'. "
        "Did you mean 'tpe'?",
        "my.yaml:24: search.trials: expected at least 1, got 0.",
        "my.yaml:25: resources.cpus: expected at least 1, got 0.",
        "my.yaml:25: resources.gpus: expected a part of one GPU or whole GPUs, got 1.5.",
        "my.yaml:26: unknown section 'serch'. Did you mean 'search'? Known: backbone, confirm, "
        "data, early_stopping, fine_tuning, methods, name, objectives, resources, search, seeds, "
        "storage, training.",
        "--set training.momentum=1: training.momentum: expected less than 1, got 1.",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("data: {}", "data: the option 'name' is missing."),
        ("data: digits", "data: expected options like {name: value}, got 'digits'."),
        (
            "data: {name: digits, train_images: al}",
            "data.train_images: expected a whole number or 'all', got 'al'. Did you mean 'all'?",
        ),
        (
            "data: {name: digits, train_images: {int: [100, 200]}}",
            "data.train_images: data are not searched. Give a value or a grid.",
        ),
        ("backbone: {depth: 4}", "backbone.name: expected the name of one, got none."),
        (
            "backbone: {name: conv, depth: {grid: [4, 6, 4]}}",
            "the grid of depth has 4 twice. Keep one.",
        ),
        (
            "backbone: {name: conv, depth: {grid: []}}",
            "backbone.depth: a grid takes a list of at least one value, as in {grid: [4, 6, 8]}.",
        ),
        (
            "backbone: {name: conv, depth: {grid: [4], note: 3}}",
            "backbone.depth: grid stands alone, got also note.",
        ),
        (
            "backbone: {name: conv, depth: {grid: [{grid: [4]}]}}",
            "backbone.depth: a grid's values are plain, with no grid or range in them.",
        ),
        (
            "backbone: {name: conv, width: {log_uniform: [0, 1]}}",
            "backbone.width: log_uniform needs both ends above 0, or both below, got 0.0 to 1.0.",
        ),
        (
            "backbone: {name: conv, hidden: {int: [8, 9.5]}}",
            "backbone.hidden: int takes two whole numbers, as in {int: [low, high]}.",
        ),
        (
            "backbone: {name: conv, hidden: {choice: [8, 8.5]}}",
            "backbone.hidden: expected a whole number, got 8.5.",
        ),
        (
            "backbone: {name: conv, hidden: {choice: [8, 8]}}",
            "backbone.hidden: a choice names each value once.",
        ),
        ("training: {epochs: true}", "training.epochs: expected a whole number, got true."),
        ("training: {epochs: .inf}", "training.epochs: expected a finite number, got .inf."),
        ("training: {epochs: 2024-01-01}", "training.epochs: expected a whole number, got "),
        (
            "training: {epochs: 1, distillation: {temperature: 2}}",
            "training.distillation: the option 'teacher' is missing.",
        ),
        (
            "training: {epochs: 1, distillation: {teacher: {depth: 5}}}",
            "training.distillation.teacher: backbone.depth: expected 4, 6 or 8, got 5.",
        ),
        (
            "methods: {l1_filter: {keep_ratio: [0.2, 0.5]}}",
            "methods.l1_filter.keep_ratio: expected a number, got [0.2, 0.5]. "
            "To try each of these write {grid: [...]}.",
        ),
        (
            "methods: {l1_filter: {keep_ratio: {loguniform: [0.2, 0.5]}}}",
            "methods.l1_filter.keep_ratio: expected a number, got {loguniform: [0.2, 0.5]}. "
            "Did you mean {log_uniform: ...}?",
        ),
        ("methods: {}", "methods: expected 1 or more values, got {}."),
        (
            "methods: {magnitude: {rounds: 4}}",
            "methods.magnitude.rounds: 4 rounds of prune and retrain need an epoch each, but "
            "fine_tuning.epochs is 3. Ask for at most 3 rounds, or for more epochs.",
        ),
        (
            "methods: {no.such.module:Method: {}}",
            "Cannot import 'no.such.module:Method': there is no module 'no'. Start Python where "
            "that package lies, or install it.",
        ),
        ("seeds: []", "seeds: expected at least one seed, got none."),
        ("seeds: [-1]", "seeds.0: expected at least 0, got -1."),
        (
            "objectives: {val_accuracy: maximize}",
            "objectives: expected two objectives or more, since a frontier lies between them, "
            "got val_accuracy.",
        ),
        (
            "name: dense",
            "name: 'dense' is what another thing in the output folder is called. "
            "Give another with name: in the file, or with --set name=...",
        ),
        (
            "search: {trials: {int: [1, 3]}}",
            "search.trials: expected a whole number, got {int: [1, 3]}. "
            "It takes no grid and no range.",
        ),
    ],
)
def test_a_mistake_has_its_message(
    line: str, message: str, problems: Callable[..., list[str]]
) -> None:
    section = line.partition(":")[0]
    lines = [other for other in MINIMAL.splitlines() if not other.startswith(section + ":")]
    found = problems("\n".join([*lines, line]))
    assert found[0].startswith(f"my.yaml:{len(lines) + 1}: {message}")
    assert len(found) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "my.yaml:1: expected sections like {name: value}, got an empty file."),
        ("- 1\n", "my.yaml:1: expected sections like {name: value}, got [1]."),
        ("a: b: c\n", "my.yaml:1: not valid YAML: mapping values are not allowed here."),
        ("a:\n\tb: 1\n", "my.yaml:2: not valid YAML: a tab. Indent with spaces."),
        (b"a: 1\nb: \xff\n", "my.yaml:2: not UTF-8 text. Save the file as UTF-8."),
        ("a: *b\n", "my.yaml:1: not valid YAML: found undefined alias 'b'."),
        ("a: 1\n---\nb: 2\n", "my.yaml:2: not valid YAML: expected a single document in the"),
        ("a: &a [*a]\n", "my.yaml:1: not valid YAML: more than 20 levels or 20,000 values."),
        ("[" * 600, "my.yaml:1: not valid YAML: more than 20 levels or 20,000 values."),
        (
            "a0: &a0 [1]\n"
            + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)),
            "my.yaml:1: not valid YAML: more than 20 levels or 20,000 values.",
        ),
        ("a: \x01\n", "my.yaml:1: not valid YAML: the character '\\x01' cannot stand in YAML."),
    ],
)
def test_what_is_not_a_yaml_mapping_is_refused(
    text: str | bytes, problem: str, problems: Callable[..., list[str]]
) -> None:
    [found] = problems(text)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("addition", "problem"),
    [
        ("seeds: [1]\nseeds: [2]\n", "my.yaml:6: seeds is given twice, first in line 5. Keep one."),
        ("seeds: !!python/name:os.system\n", "my.yaml:5: seeds: the tag "),
        ("search: {seed: 99999999999999999999}\n", "my.yaml:5: search.seed: 9999999999999999999"),
        ("? [a]\n: b\n", "my.yaml:1: a key is plain text, not a list or a mapping."),
        ('name: "a\\0b"\n', "my.yaml:5: name: the text 'a\\x00b' holds characters that do not"),
    ],
)
def test_yaml_that_no_option_could_mean_is_refused(
    addition: str, problem: str, problems: Callable[..., list[str]]
) -> None:
    assert problems(MINIMAL + addition)[0].startswith(problem)


def test_a_file_that_is_not_there_or_is_a_folder_is_refused(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path / "none.yaml", "there is no such file."),
        (tmp_path, "a folder, where a file is expected."),
    ):
        with pytest.raises(SweepFileError) as caught:
            load_sweep(path)
        assert caught.value.problems == [f"{path}: {reason}"]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("backbone.depth=5", "--set backbone.depth=5: backbone.depth: expected 4, 6 or 8, got 5."),
        ("depth", "--set depth: expected key.path=value, as in backbone.depth=4."),
        ("=3", "--set =3: expected key.path=value, as in backbone.depth=4."),
        ("data.name.x=3", "--set data.name.x=3: data.name is a value and holds no options."),
        ("seeds=[1", "--set seeds=[1: not valid YAML: while parsing a flow sequence"),
        ("training.epochs=.nan", "--set training.epochs=.nan: training.epochs: expected a finite"),
        ("methods.dnse={}", "--set methods.dnse={}: unknown method 'dnse'. Did you mean 'dense'?"),
    ],
)
def test_a_mistake_in_set_is_reported_as_such(
    override: str, problem: str, problems: Callable[..., list[str]]
) -> None:
    [found] = problems(MINIMAL, override)
    assert found.startswith(problem)


def test_every_fine_tuning_of_a_grid_is_held_against_the_methods(
    problems: Callable[..., list[str]],
) -> None:
    text = MINIMAL.replace("dense: {}", "magnitude: {rounds: {grid: [2, 3]}}")
    assert problems(text, "fine_tuning.epochs={grid: [3, 2]}") == [
        "my.yaml:4: methods.magnitude.rounds: 3 rounds of prune and retrain need an epoch each, "
        "but fine_tuning.epochs is 2. Ask for at most 2 rounds, or for more epochs."
    ]


def test_values_that_a_model_refuses_together_are_found(problems: Callable[..., list[str]]) -> None:
    overrides = ["backbone.depth={grid: [6, 4]}", "backbone.pool_after={grid: [[4], [6]]}"]
    [found] = problems(MINIMAL, *overrides)
    assert "pool_after takes different convs from 1 to 4, got (6,)" in found


def test_too_many_trials_are_refused_with_their_number(problems: Callable[..., list[str]]) -> None:
    hundred = f"{{grid: {[value / 1000 for value in range(1, 101)]}}}"
    overrides = [f"training.{name}={hundred}" for name in ("learning_rate", "weight_decay")]
    [found] = problems(MINIMAL, *overrides, f"training.momentum={hundred}")
    assert found == (
        f"my.yaml:1: the grids, seeds and tries make 1,000,000 trials, more than the "
        f"{MOST_TRIALS:,} of one sweep. Take values out of the grids, or make it several sweeps."
    )


def test_data_are_checked_on_their_line(problems: Callable[..., list[str]], tmp_path: Path) -> None:
    text = MINIMAL.replace("{name: digits}", "\n  name: digits\n  classes: {grid: [5, 12]}")
    assert problems(text, data_root=tmp_path) == [
        "my.yaml:3: data.classes: expected at most the 10 classes of 'digits', got 12."
    ]


def test_a_users_own_method_and_backbone_are_checked_too(
    load: Callable[..., Sweep],
    problems: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "users_own.py").write_text(
        "from pydantic import BaseModel\n"
        "class Halve(BaseModel, extra='forbid'):\n"
        "    share: float = 0.5\n"
        "    def prune(self, model, data, run): ...\n"
        "def small_net(input_shape, n_classes, layers=2): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = MINIMAL.replace("conv", "users_own:small_net, layers: {grid: [2, 3]}")
    sweep = load(text, "methods.users_own:Halve.share={uniform: [0.1, 0.9]}")
    assert sweep.methods["users_own:Halve"] == {"share": Range("uniform", (0.1, 0.9))}
    assert sweep.backbone["layers"] == Grid((2, 3))
    assert problems(text, "backbone.layrs=1", "methods.users_own:Halve.shar=1") == [
        "--set backbone.layrs=1: unknown option of users_own:small_net 'layrs'. "
        "Did you mean 'layers'? Known: layers.",
        "--set methods.users_own:Halve.shar=1: methods.users_own:Halve: unknown option 'shar'. "
        "Did you mean 'share'? Known: share.",
    ]
