"""Every flag of train.py and eval.py, as frozen and validated dataclasses.

    SFTFlags         = RunFlags + SFTConfig        (grpo/config.py)       + flags of stage sft
    GRPOFlags        = RunFlags + GRPOConfig       (grpo/config.py)       + flags of stage grpo
    CloningFlags     = RunFlags + CloningConfig    (trajectory/config.py) + flags of stage trajectory-bc
    TrajectoryFlags  = RunFlags + TrajectoryConfig (trajectory/config.py) + flags of stage trajectory-grpo
    EvalConfig                                                              flags of eval.py

Order of resolution: field default < preset < --algorithm < model directory < command line. `--preset demo` holds what
the built-in tiny model needs; it applies by itself only if model and data are both built in. train.py prints the
resolved values and saves them in OUTPUT/config.json.
"""

import argparse
import dataclasses
import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from data.example import CAMERA_COUNTS, SCENE_SIZE, picture_size
from data.fields import MAX_SPEED
from grpo.config import ALGORITHMS, GRPOConfig, SFTConfig, check_choices, option, require
from trajectory.config import TEXT_ONLY, CloningConfig, TrajectoryConfig, chain_algorithm

Flags = TypeVar("Flags", bound="RunFlags | EvalConfig")
PRIORS = ("balanced", "natural", "long_tail")           # of the built-in scenes
WAYPOINT_TOKENS = 96                                    # of eight way-points with their tags, at most
MAX_SEED = 2**63                                        # of torch's generators
OF_SCENES = "with --data FILE: it belongs to the built-in scenes"
SIZE_WANTED = "WIDTHxHEIGHT in pixels, each from 28 to 4096, such as 448x224"


@dataclass(frozen=True)
class RunFlags:
    """Flags of a training run that the method does not read. Units: pixels, steps."""

    model: str = option("", "model directory in hub layout, or `tiny`; default: tiny (sft), runs/sft/model (grpo)")
    data: str = option("scenes", "examples file (JSON, JSON list or JSON Lines), or `scenes`")
    image_root: str = option("", "with --data FILE: folder that holds all its pictures; default: the file's own folder")
    actions: str = option("", "JSON file with lists of actions of your own, docs/own.md; default: those of the model, "
                              "else AlphaDrive's")
    val_data: str = option("", "examples file to validate on; default: the examples of --data with the split `val`")
    split: str = option("", "split to train on; default: of the scenes sft for sft and trajectory-bc, rl for grpo and "
                            "trajectory-grpo; of files train")
    output: str = option("", "directory for model, metrics and samples; default: runs/<stage>")
    overwrite: bool = option(False, "replace a non-empty output directory")
    save_every: int = option(0, "save the state to OUTPUT/state every N steps; 0: as --save-minutes says, and when the "
                                   "run stops early")
    save_minutes: float = option(20.0, "save the state when so many minutes have passed since the last one; 0: never; "
                                       "default for the built-in model: 0")
    tensorboard: bool = option(False, "also write OUTPUT/tensorboard (needs the package tensorboard)")
    keep: int = option(2, "states to keep; older ones are removed after a new one is complete")
    resume: str = option("", "continue from a state: `auto` is the newest one of OUTPUT, if any; or its directory")
    max_time: str = option("", "save and exit with code 75 before this time is over: 3h, 1h30m, 45m, 90s")
    on_bad_data: str = option("stop", "for a record or picture that cannot be used: stop, or skip it and list it in "
                                      "OUTPUT/skipped.jsonl", ("stop", "skip"))
    preset: str = option("", "named set of values, or none; demo applies by itself if model and data are built in",
                         ("", "demo", "none"))
    device: str = option("auto", "where to compute", ("auto", "cpu", "cuda"))
    threads: int = option(0, "CPU threads; 0: torch's choice")
    steps: int = option(0, "number of steps; 0: as many as --epochs needs")
    epochs: float = option(1.0, "passes over the data, if --steps is 0")
    balance: bool = option(False, "draw every plan equally often, however many examples it has; an epoch is as many "
                                  "draws as there are examples")
    scenes: int = option(3000, "number of built-in scenes to train on")
    prior: str = option("balanced", "how often the scenes' plans occur", PRIORS)
    scene_size: str = option(SCENE_SIZE, "size of the built-in scenes' pictures, WIDTHxHEIGHT in pixels")
    camera_count: int = option(1, "cameras of the built-in scenes: 1, or 3 for scenes of their own in which a quarter "
                                  "of the plans depends on a side view", CAMERA_COUNTS)
    max_skipped: int = option(5, "stop after this many skipped steps in a row: loss or gradient not finite")
    lora_rank: int = option(0, "train adapters of this rank and freeze the weights; 0: train every weight")
    lora_alpha: float = option(32.0, "adapters are scaled by alpha / rank")
    lora_targets: str = option("q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj", "layers with an adapter")
    adapter: str = option("", "directory of a LoRA adapter in PEFT's format, merged into --model before training")
    freeze_vision: bool = option(False, "freeze the vision tower; its features are then computed once")
    feature_cache_mb: int = option(1024, "memory in MiB for the features of a frozen vision tower")
    gradient_checkpointing: bool = option(False, "recompute decoder layers in backward: less memory, more time")
    min_pixels: int = option(0, "smallest picture area in pixels; 0: as in the model directory")
    max_pixels: int = option(0, "largest picture area in pixels; 0: as in the model directory, at most 401408")
    eval_every: int = option(0, "greedy validation every N steps, keeping the best model; 0: only at the end")
    eval_examples: int = option(300, "number of validation examples used while training")
    eval_batch: int = option(32, "prompts decoded together in validation; changes memory and time only")
    kernels: str = option("fast", "plain: exactly the lines of grpo/*.py; fast: the same numbers from grpo/fast/",
                          ("fast", "plain"))
    decode: str = option("eager", "decoding step: eager, graph (CUDA graph) or compile (torch.compile)",
                         ("eager", "graph", "compile"))

    def __post_init__(self) -> None:
        check_choices(self)
        check_places(self, ("model", "data", "image_root", "actions", "val_data", "output", "adapter"))
        require(not self.adapter or self.model != "tiny", self, "adapter", "left out with --model tiny, which is new")
        require(self.seed < MAX_SEED, self, "seed", f"below {MAX_SEED}")
        for name in ("eval_batch", "scenes"):
            require(getattr(self, name) > 0, self, name, "a value above 0")
        for name in ("steps", "eval_every", "eval_examples", "min_pixels", "max_pixels", "threads", "lora_rank",
                     "feature_cache_mb", "save_every", "save_minutes"):
            require(getattr(self, name) >= 0, self, name, "0 or more")
        require(picture_size(self.scene_size) is not None, self, "scene_size", SIZE_WANTED)
        require(self.data == "scenes" or self.prior == "balanced", self, "prior", f"balanced (the default) {OF_SCENES}")
        require(self.data == "scenes" or self.camera_count == 1, self, "camera_count", f"1 (the default) {OF_SCENES}")
        leave_out(self, ("image_root",), bool(self.val_data) or self.data != "scenes", "without --data FILE")
        leave_out(self, ("lora_alpha", "lora_targets"), self.lora_rank > 0, "without --lora-rank")
        require(self.keep > 0, self, "keep", "1 or more")
        require(self.max_seconds > 0 and not math.isnan(self.max_seconds), self, "max_time",
                "a time above 0 such as 3h, 1h30m, 45m or 90s")
        require(self.lora_alpha > 0, self, "lora_alpha", "a value above 0")
        require(self.steps > 0 or self.epochs > 0, self, "epochs", "a value above 0, or --steps")
        require(self.max_skipped > 0, self, "max_skipped", "1 or more")
        require(self.kernels == "fast" or self.decode == "eager", self, "decode", "eager with --kernels plain")

    @property
    def target_modules(self) -> list[str]:
        """The names in --lora-targets."""
        return [name.strip() for name in self.lora_targets.split(",")]

    @property
    def max_seconds(self) -> float:
        """--max-time in seconds; infinite without one, NaN for a text that is no time."""
        parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", self.max_time)
        hours, minutes, seconds = (int(part or 0) for part in parts.groups()) if parts else (0, 0, math.nan)
        return 3600 * hours + 60 * minutes + seconds if self.max_time else math.inf


@dataclass(frozen=True)
class SFTFlags(SFTConfig, RunFlags):
    """Supervised warm-up on distilled reasoning (AlphaDrive, sec. 3.4). Defaults suit the 2B model."""

    task: str = option("plan", "caption makes a base model: it describes scenes of its own and plans at random",
                       ("plan", "caption"))
    reason_share: float = option(1.0, "share of the examples that keep their reason")
    reason_choice: str = option("random", "how to choose the examples that keep their reason: at random, or equally "
                                          "many per plan",
                                ("random", "balanced"))
    gate: float = option(0.0, "planning accuracy on val (0 to 1) that the warm-up must reach; else training goes on")
    gate_rounds: int = option(2, "extra rounds of half the steps, at most, while the gate is not reached")

    def __post_init__(self) -> None:
        SFTConfig.__post_init__(self)
        RunFlags.__post_init__(self)
        require(0 < self.reason_share <= 1, self, "reason_share", "a share in (0, 1]")
        require(self.task == "plan" or (self.data == "scenes" and not self.gate), self, "task",
                "plan unless the data are the built-in scenes and --gate is 0: a base model cannot plan")
        require(self.task == "plan" or self.answer == "plan", self, "answer",
                "plan with --task caption: a base model describes scenes")
        require(0 <= self.gate <= 1, self, "gate", "a fraction in [0, 1]")


@dataclass(frozen=True)
class GRPOFlags(GRPOConfig, RunFlags):
    """Reinforcement learning with planning rewards. Defaults suit the 2B model and GRPO.

    Coefficients are constants (`0.04`) or annealed over the run (`0.04:0.01:linear`, `1:0.2:cosine`: from, to, shape).
    """

    reward_processes: int = option(0, "call the functions of --reward in N processes of their own, N groups at a time; "
                                      "0: here, one by one")
    reward_timeout: float = option(60.0, "seconds that a call in such a process may take")
    samples_every: int = option(10, "write some groups to samples.jsonl every N steps")

    def __post_init__(self) -> None:
        GRPOConfig.__post_init__(self)
        RunFlags.__post_init__(self)
        for name in ("samples_every", "reward_timeout"):
            require(getattr(self, name) > 0, self, name, "a value above 0")
        require(self.reward_processes >= 0, self, "reward_processes", "0 or more")
        leave_out(self, ("reward_mode", "reward_accuracy", "diversity", "trajectory_reward"),
                  "planning" in self.rewards, "without --reward planning, of which it is a setting")
        leave_out(self, ("dynamic_sampling",), self.advantage in ("group", "leave_one_out"),
                  "unless --advantage is group or leave_one_out: groups of equal rewards teach the others too")
        leave_out(self, ("reward_processes",), self.own_rewards, "without --reward FILE.py:FUNCTION")
        leave_out(self, ("reward_timeout",), self.reward_processes > 0, "without --reward-processes")
        require(not self.lora_rank or self.reference_dtype == "auto", self, "reference_dtype",
                "auto with --lora-rank: the reference is the frozen base, in its own type")
        require(not self.lora_rank or self.advantage != "gae" or self.value_trunk == "shared", self, "value_trunk",
                "shared with --lora-rank: a second trunk would be trained in full")


# Flags of a language model's training, which a trajectory decoder has no use for
NO_DECODER = TEXT_ONLY | {"preset", "lora_rank", "lora_alpha", "lora_targets", "adapter", "freeze_vision", "balance",
                          "feature_cache_mb", "gradient_checkpointing", "kernels", "decode", "scene_size", "actions",
                          "camera_count"}


@dataclass(frozen=True)
class DecoderFlags(RunFlags):
    """What both trajectory stages share. Units: metres are jittered by a share of themselves."""

    HIDDEN: ClassVar[frozenset[str]] = NO_DECODER
    condition: str = option("planner", "what the decoder knows of a scene: the planner's hidden states, or the facts "
                                       "of the built-in scenes, as with perfect perception", ("planner", "facts"))
    metre_noise: float = option(0.12, "largest relative difference between a built-in scene's true distances and the "
                                      "usual ones of its words (near, far); pictures do not show it")
    scenes: int = option(6000, "number of built-in scenes to train on")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.metre_noise < 0.5, self, "metre_noise", "a share in [0, 0.5)")
        require(self.seed < 2**31, self, "seed", "below 2,147,483,648 in a trajectory stage")
        require(self.condition == "planner" or self.data == "scenes", self, "condition",
                "planner with --data FILE: only the built-in scenes have facts")


@dataclass(frozen=True)
class CloningFlags(CloningConfig, DecoderFlags):
    """Behaviour cloning of a diffusion decoder on demonstrated trajectories. --model is the planner, a language model.

    It ends by a rule: after --steps, rounds of half as many steps follow, each with its own schedule, until a round
    lowers the validation loss by less than --round-gain, or --rounds are done."""

    HIDDEN: ClassVar[frozenset[str]] = NO_DECODER | {"eval_every"}
    model: str = option("", "directory of the planner; default: runs/grpo/model, else runs/sft/model; unused with "
                            "--condition facts")
    ranked: str = option("", "directory of a decoder: clone the best of 16 of its own trajectories per scene, by the "
                             "score, instead of the demonstrations (ranked SFT)")
    steps: int = option(3000, "number of steps; 0: as many as --epochs needs")
    rounds: int = option(2, "further rounds of half the steps, at most")
    round_gain: float = option(0.01, "share by which a round must lower the validation loss for another to follow")

    def __post_init__(self) -> None:
        CloningConfig.__post_init__(self)
        DecoderFlags.__post_init__(self)
        require(self.rounds >= 0, self, "rounds", "0 or more")
        require(0 <= self.round_gain < 1, self, "round_gain", "a share in [0, 1)")
        check_places(self, ("ranked",))
        require(not self.ranked or self.data == "scenes", self, "ranked",
                "left out with --data FILE: trajectories are ranked by the facts of built-in scenes")


@dataclass(frozen=True)
class TrajectoryFlags(TrajectoryConfig, DecoderFlags):
    """GRPO on the denoising chain of a cloned decoder, which is --model."""

    HIDDEN: ClassVar[frozenset[str]] = NO_DECODER | {"condition"}
    model: str = option("", "directory of the decoder to improve; default: runs/trajectory-bc/model")
    steps: int = option(400, "number of steps; 0: as many as --epochs needs")
    planner: str = option("", "directory of the planner, if it has moved since the decoder was cloned")
    samples_every: int = option(10, "write some groups to samples.jsonl every N steps")

    def __post_init__(self) -> None:
        TrajectoryConfig.__post_init__(self)
        DecoderFlags.__post_init__(self)
        require(self.samples_every > 0, self, "samples_every", "a value above 0")
        check_places(self, ("planner",))
        require(self.data == "scenes" or not self.guidance, self, "guidance",
                "0 with --data FILE: it needs the facts of the built-in scenes")
        require(self.data == "scenes" or self.noise_adapt != "complexity", self, "noise_adapt",
                "none or validity with --data FILE: complexity needs the facts of the built-in scenes")


def default_of(flags: type, name: str) -> object:
    """The value of a flag that is not given."""
    return next(field.default for field in dataclasses.fields(flags) if field.name == name)


def leave_out(config: object, names: Sequence[str], read: bool, when: str) -> None:
    """Raise a ValueError for a flag that is given and that nothing reads. Resumed runs keep theirs."""
    read = read or bool(config.resume)
    for name in names:
        require(read or getattr(config, name) == default_of(type(config), name), config, name, f"left out {when}")


def places_read(config: RunFlags) -> list[str]:
    """The files and folders that a run reads; its output may hold none of them."""
    names = ("model", "adapter", "data", "val_data", "image_root", "actions", "ranked", "planner")
    rewards = [reward.rpartition(":")[0] for reward in getattr(config, "rewards", ())]
    return [*(getattr(config, name, "") for name in names), *rewards]


STAGES = {"sft": SFTFlags, "grpo": GRPOFlags, "trajectory-bc": CloningFlags, "trajectory-grpo": TrajectoryFlags}


@dataclass(frozen=True)
class EvalConfig:
    """Scoring of one model on one split, greedily and by sampling."""

    model: str = option("", "model directory; default: runs/grpo/model, else runs/sft/model")
    adapter: str = option("", "directory of a LoRA adapter in PEFT's format, merged into --model, its base")
    data: str = option("scenes", "examples file, or `scenes`")
    image_root: str = option("", "with --data FILE: folder that holds all its pictures; default: the file's own folder")
    split: str = option("test", "split to score")
    answer: str = option("", "ask for a plan, or for a plan and way-points (trajectory); default: as in training",
                         ("", "plan", "trajectory"))
    prior: str = option("balanced", "how often the built-in scenes' plans occur", PRIORS)
    scene_size: str = option("", "built-in scenes are drawn this large, such as 448x224; default: as in training")
    camera_count: int = option(0, "cameras of the built-in scenes: 1 or 3; 0: as in training", (0, *CAMERA_COUNTS))
    limit: int = option(2000, "at most this many examples; 0: all of a file")
    on_bad_data: str = option("stop", "for a record or picture that cannot be used: stop, or score the others and list "
                                      "it in OUTPUT/skipped.jsonl", ("stop", "skip"))
    samples: int = option(1, "completions per example at --temperature, scored beside the greedy answer; 0: none")
    temperature: float = option(1.0, "temperature of the samples")
    temperatures: str = option("", "more temperatures for the curve of validity and coverage: 0.25,0.5,1,1.5")
    max_new_tokens: int = option(0, "longest completion; 0: what the model was trained with, else 256")
    batch_size: int = option(32, "prompts decoded together")
    seed: int = option(0, "seed of the sampling")
    device: str = option("auto", "where to compute", ("auto", "cpu", "cuda"))
    dtype: str = option("auto", "weights in this type; auto: bf16 on cuda, fp32 on cpu", ("auto", "fp32", "bf16"))
    threads: int = option(0, "CPU threads; 0 leaves torch's choice")
    min_pixels: int = option(0, "smallest picture area; 0: the model's own")
    max_pixels: int = option(0, "largest picture area; 0: the model's own, at most 401408")
    output: str = option("", "directory for metrics.json and predictions.jsonl; default: eval-<split> beside the "
                                "model, eval-<split>-<prior> for another prior than balanced")
    overwrite: bool = option(False, "replace a non-empty output directory")
    resume: bool = option(False, "go on where an interrupted scoring with the same settings stopped")
    image: str = option("", "plan for one picture, or for every picture of a folder, instead of scoring a split; given "
                            "several times, its pictures belong to one question, in this order")
    cameras: str = option("", "with several --image: names of their cameras for the question, such as front,front_left")
    images: str = option("", "plan for many requests without labels, in batches: a folder, a .txt list of paths, a "
                             ".json or .jsonl file of records, or - for records on standard input")
    json: str = option("-", "with --images: file for one JSON line per request; - is standard output")
    speed: float = option(0.0, "with --image or --images: ego speed in m/s")
    navigation: str = option("Go straight", "with --image or --images: free text, or AlphaDrive's dict as text")
    # -- trajectories
    trajectories: int = option(0, "drive K trajectories per scene or picture with a trajectory decoder, instead of "
                                  "scoring plans; 0: plans")
    decoder: str = option("", "directory of the trajectory decoder; default: "
                              "runs/trajectory-grpo/model, else runs/trajectory-bc/model")
    plan: str = option("auto", "the plan that the decoder is told: none, the planner's own, the label; auto: the "
                               "planner's, none without a planner", ("auto", "none", "planner", "expert"))
    eta: float = option(0.0, "share of DDPM's noise in a step; 0: deterministic from the first noise on")
    noise_floor: float = option(0.0, "smallest sigma of a step, as in training; 0 for deployment")
    guidance: int = option(0, "gradient steps away from obstacles and back to the road in each of the last two "
                              "denoising steps; needs a scene's facts")
    best_of: int = option(1, "draw N for each trajectory, keep the best by the score at nominal metres; needs facts")

    def __post_init__(self) -> None:
        check_choices(self)
        check_places(self, ("model", "data", "image_root", "output", "image", "images", "json", "decoder",
                            "adapter"))
        self.check_values()
        self.check_what_is_done()
        self.check_data()

    def check_values(self) -> None:
        """Each number in its range."""
        for name in ("limit", "samples", "max_new_tokens", "min_pixels", "max_pixels", "speed", "threads",
                     "trajectories", "noise_floor", "guidance"):
            require(getattr(self, name) >= 0, self, name, "0 or more")
        for name in ("temperature", "batch_size"):
            require(getattr(self, name) > 0, self, name, "a value above 0")
        require(0 <= self.seed < MAX_SEED, self, "seed", f"0 or more, and below {MAX_SEED}")
        require(self.speed <= MAX_SPEED, self, "speed", f"a speed in m/s, at most {MAX_SPEED:g}")
        require(0 <= self.eta <= 1, self, "eta", "a share in [0, 1]")
        require(self.best_of > 0, self, "best_of", "1 or more")
        require(not self.scene_size or picture_size(self.scene_size) is not None, self, "scene_size", SIZE_WANTED)
        require(bool(self.sweep) or not self.samples, self, "temperatures", "numbers above 0, with commas between")

    def check_what_is_done(self) -> None:
        """Flags of scoring, of planning for pictures and of driving trajectories apart from each other."""
        require(not (self.images and (self.image or self.trajectories)), self, "images",
                "left out with --image or --trajectories")
        require(self.json == "-" or bool(self.images), self, "json", "left out without --images")
        names = self.cameras.split(",") if self.cameras else []
        require(not names or len(names) == len(self.image.split("\n")) > 1, self, "cameras",
                "one name for each of several --image")
        require(not self.adapter or bool(self.model), self, "adapter", "given together with --model, its base")
        require(not (self.adapter and self.trajectories), self, "adapter", "left out with --trajectories")
        require(not (self.resume and self.overwrite), self, "resume", "left out with --overwrite")
        require(not (self.resume and self.images), self, "resume", "left out with --images; plan for the rest alone")
        require(not (self.resume and self.image), self, "resume", "left out with --image, which writes no file")
        require(not (self.resume and self.trajectories), self, "resume", "left out with --trajectories, which is fast")
        require(bool(self.samples) or not self.temperatures, self, "temperatures", "empty with --samples 0")
        require(self.plan != "expert" or not self.image, self, "plan",
                "none or planner with --image, whose pictures have no label")
        self.check_used()

    def check_used(self) -> None:
        """No flag that what is done does not read."""
        asked, drives = bool(self.image or self.images), bool(self.trajectories)
        leave_out(self, ("decoder", "plan", "eta", "noise_floor", "guidance", "best_of"), drives,
                  "without --trajectories K")
        leave_out(self, ("samples", "temperature", "temperatures", "max_new_tokens", "answer", "scene_size", "dtype"),
                  not drives, "with --trajectories, whose decoder does not read it")
        leave_out(self, ("data", "split", "limit", "temperatures", "output", "prior"), not asked,
                  "with --image or --images, which score nothing")
        leave_out(self, ("speed", "navigation"), asked, "without --image or --images; the data say it for each example")
        leave_out(self, ("image_root",), bool(self.images) or self.data != "scenes", "without --data FILE or --images")
        leave_out(self, ("overwrite",), not self.image, "with --image, which writes no file")
        leave_out(self, ("temperature",), self.samples > asked, "with greedy answers alone: see --samples")

    def check_data(self) -> None:
        """What only the built-in scenes have."""
        require(self.data == "scenes" or self.prior == "balanced", self, "prior", f"balanced (the default) {OF_SCENES}")
        require(self.data == "scenes" or not self.camera_count, self, "camera_count", f"left out {OF_SCENES}")
        require(not (self.camera_count and self.trajectories), self, "camera_count", "left out with --trajectories")
        for name, unused in (("guidance", 0), ("best_of", 1)):
            require(getattr(self, name) == unused or (self.data == "scenes" and not self.image), self, name,
                    "left out with --data FILE or --image, whose scenes have no known facts")

    @property
    def run(self) -> Path:
        """The folder of what is scored: of a decoder, an adapter or a model."""
        return Path(self.decoder or self.adapter or self.model).parent

    @property
    def scores(self) -> Path:
        """--output, or eval-test beside what is scored; eval-test-natural, so that no other prior's are replaced."""
        return Path(self.output or self.run / (f"eval-{self.split}" + f"-{self.prior}" * (self.prior != "balanced")))

    @property
    def sweep(self) -> tuple[float, ...]:
        """Every temperature to sample at, ascending; none without samples, or where one is no number above 0."""
        try:
            values = {self.temperature, *(float(part) for part in self.temperatures.split(",") if part)}
        except ValueError:
            return ()
        good = self.samples > 0 and all(math.isfinite(value) and value > 0 for value in values)
        return tuple(sorted(values)) if good else ()


# What the tiny model needs on two CPU cores; chosen by a few runs scored on the val split.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "demo": {
        "sft": dict(precision="fp32", steps=300, batch_size=64, micro_batch_tokens=32768, learning_rate=2e-3,
                    weight_decay=0.05, adam_beta2=0.98, warmup_steps=50, lr_schedule="linear", decay_share=0.5,
                    prompt_style="compact", max_new_tokens=48, eval_batch=64, eval_examples=300, gate=0.58),
        "grpo": dict(precision="fp32", steps=40, prompts_per_step=16, micro_batch_tokens=32768, learning_rate=1e-4,
                     adam_beta2=0.98, warmup_steps=10, lr_schedule="linear", min_lr_ratio=0.05, beta="0",
                     value_learning_rate=1e-3, scenes=9000, prompt_style="compact", max_new_tokens=48, eval_batch=64,
                     eval_examples=100, eval_every=40),
    },
}


REPEATED = {"reward": ",", "image": "\n"}                   # flags that may be given several times, joined by this


def check_places(config: object, names: Sequence[str]) -> None:
    """Raise a ValueError for places that are no plain paths: an output of that name would be made here."""
    places = ((name, place) for name in names for place in getattr(config, name).split("\n"))
    for name, place in places:
        there = Path(place).exists()
        require(there or not place.startswith("~"), config, name,
                "a whole path: the shell expands ~ only at the start of a word, not after =")
        require(there or not place.lower().startswith("file:"), config, name, "a plain path, without file://")
        require(there or "\\" not in place, config, name, "a path whose folders are separated by /, not by backslashes")
        require(name != "image_root" or Path(place).is_dir(), config, name, "a folder that exists")


def add_flags(parser: argparse.ArgumentParser, config_class: type[Flags]) -> None:
    """One flag per field; absent flags stay absent, so that presets can fill them. Booleans are on | off."""
    for f in shown_fields(config_class):
        kind = on_off if isinstance(f.default, bool) else type(f.default)
        extra = {"nargs": "?", "const": True} if kind is on_off else {}
        shown = {True: "on", False: "off"}.get(f.default, f.default) if kind is on_off else f.default
        parser.add_argument(f"--{f.name.replace('_', '-')}", dest=f.name, type=kind, default=argparse.SUPPRESS,
                            action="append" if f.name in REPEATED else "store",
                            choices=None if kind is on_off else f.metadata["choices"], **extra,
                            metavar="on|off" if kind is on_off else None,
                            help=(f.metadata["help"] + f" (default: {shown})" * (shown != "")).replace("%", "%%"))


def shown_fields(config_class: type[Flags]) -> list[dataclasses.Field]:
    """The fields that are flags of a command; some inherited ones have no meaning there."""
    hidden = getattr(config_class, "HIDDEN", ())
    return [f for f in dataclasses.fields(config_class) if f.name not in hidden]


def on_off(text: str) -> bool:
    """Flag value to bool; `bool('False')` would be True."""
    values = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither on nor off")
    return values[text.lower()]


def resolve(config_class: type[Flags], stage: str, flags: dict[str, Any], own: dict[str, Any],
            built_in: bool) -> Flags:
    """Defaults < preset < algorithm < what the model directory was trained with (`own`) < flags.

    The demo preset applies unasked when model and data are both built in. An algorithm's settings apply when it is
    asked for; the field defaults are those of `grpo`."""
    preset = flags.get("preset") or ("demo" if built_in else "none")
    values = {} if preset == "none" else PRESETS[preset].get(stage, {})
    if "steps" in flags:
        values = {name: value for name, value in values.items() if name != "gate"}  # --steps N means N steps, no more
    if flags.get("answer") == "trajectory" and "max_new_tokens" in values:
        values = {**values, "max_new_tokens": values["max_new_tokens"] + WAYPOINT_TOKENS}
    algorithm = ALGORITHMS[flags["algorithm"]] if "algorithm" in flags else {}
    algorithm = chain_algorithm(algorithm) if stage == "trajectory-grpo" and algorithm else algorithm
    return config_class(**{**values, **algorithm, **own, **flags, "preset": preset})


def parse_flags(config_class: type[Flags], description: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Command line -> the given flags only. Unknown or abbreviated flags are errors; one of another stage is named."""
    parser = argparse.ArgumentParser(description=inspect.cleandoc(description), allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, config_class)
    found, unknown = parser.parse_known_args(arguments)
    if unknown:
        name = unknown[0].split("=")[0].removeprefix("--").replace("-", "_")
        stages = [stage for stage, other in STAGES.items() if name in {f.name for f in shown_fields(other)}]
        belongs = f" (--{name.replace('_', '-')} belongs to --stage {', '.join(stages)})" if stages else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{belongs}")
    return {name: REPEATED[name].join(value) if name in REPEATED else value for name, value in vars(found).items()}
