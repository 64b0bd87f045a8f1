# Every target makes its own virtual environment first. Override the interpreter: make PYTHON=python3.12 test
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: test test-engine test-others lint demo trajectories trajectories-full results results-full soak clean

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch .venv/ready

.venv/ready-dev: requirements-dev.txt .venv/ready
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch .venv/ready-dev

# Two halves side by side, one per core; their dots mix, their reports do not.
test: .venv/ready
	@$(MAKE) --jobs=2 --keep-going --no-print-directory test-engine test-others

test-engine:
	$(PY) -m pytest tests/grpo tests/models
test-others:
	$(PY) -m pytest tests --ignore=tests/grpo --ignore=tests/models

lint: .venv/ready-dev
	.venv/bin/ruff check .

# SFT, evaluation, GRPO, evaluation, table: the built-in scenes and the tiny model, two CPU cores.
demo: .venv/ready
	$(PY) train.py --stage sft --overwrite
	$(PY) eval.py --model runs/sft/model --limit 1000 --overwrite
	$(PY) train.py --stage grpo --overwrite
	$(PY) eval.py --model runs/grpo/model --limit 1000 --overwrite
	$(PY) report.py runs/sft runs/grpo

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
