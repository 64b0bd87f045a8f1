# Every target makes its own virtual environment first. Override the interpreter: make PYTHON=python3.12 test
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: test test-method test-rest lint demo trajectories trajectories-full results results-full soak clean

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch .venv/ready

.venv/ready-dev: requirements-dev.txt .venv/ready
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch .venv/ready-dev

# Two halves of about equal time side by side, one per core; their dots mix, their reports do not.
test: .venv/ready
	@$(MAKE) --jobs=2 --keep-going --no-print-directory test-method test-rest

METHOD := tests/grpo tests/models tests/data tests/trajectory
test-method:
	$(PY) -m pytest $(METHOD)
test-rest:
	$(PY) -m pytest tests $(METHOD:%=--ignore=%)

lint: .venv/ready-dev
	.venv/bin/ruff check .

# SFT; then, for the same time each, more SFT and GRPO; evaluation and report: the built-in scenes and the tiny model,
# two CPU cores. What counts is one number, named before the runs: the expected cost of missed braking of answers
# sampled at T = 1 (docs/evaluation.md). GRPO is paid for it; the report says whether it beat more SFT.
SEED ?= 0
SCORE := $(PY) eval.py --limit 500 --samples 4 --overwrite
FROM_SFT := --model runs/sft/model --preset demo --overwrite
demo: .venv/ready
	$(PY) train.py --stage sft --seed $(SEED) --overwrite
	$(SCORE) --model runs/sft/model
	$(PY) train.py --stage sft $(FROM_SFT) --steps 64 --warmup-steps 10 --learning-rate 1e-3 --seed 10$(SEED) \
		--output runs/sft-continued
	$(SCORE) --model runs/sft-continued/model
	$(PY) train.py --stage grpo $(FROM_SFT) --reward-mode set --reward planning \
		--reward benchmarks/paper_rewards.py:braking --reward-weights braking=6 --learning-rate 2e-4 --scenes 2000 \
		--seed $(SEED)
	$(SCORE) --model runs/grpo/model
	$(PY) report.py runs/sft runs/sft-continued runs/grpo

# Cloning and GRPO of a trajectory decoder: on the demo's planner if there is one, else on the scenes' facts.
PLANNER = $(firstword $(wildcard runs/grpo/model runs/sft/model))
CONDITION = $(if $(PLANNER),--model $(PLANNER),--condition facts)
trajectories: .venv/ready
	@echo "condition: $(if $(PLANNER),hidden states of $(PLANNER),facts - make demo first to condition on a planner)"
	$(PY) train.py --stage trajectory-bc $(CONDITION) --overwrite
	$(PY) eval.py --trajectories 16 --plan none --decoder runs/trajectory-bc/model --limit 1000 --overwrite
	$(PY) train.py --stage trajectory-grpo --overwrite
	$(PY) eval.py --trajectories 16 --plan none --limit 1000 --overwrite
	$(PY) report.py runs/trajectory-bc runs/trajectory-grpo

# The study of docs/trajectories.md: three seeds, all arms. About 70 minutes on two cores; start it again to go on.
trajectories-full: .venv/ready
	$(PY) benchmarks/trajectories.py --planner "$(PLANNER)"

# The short set of docs/results.md: Table 2, Table 3 with reasons, the controls; three seeds. Start it again to go on.
results: .venv/ready
	$(PY) benchmarks/results.py

# All that the record still lacks, in a fixed order. Many hours; start it again to go on.
results-full: .venv/ready
	$(PY) benchmarks/results.py --full

# 2,000 GRPO steps under 20 endings of five kinds against an undisturbed run: equal to the bit, and memory does not grow.
soak: .venv/ready
	$(PY) benchmarks/soak.py --steps 2000 --kills 20

clean:
	rm -rf .venv runs
