# Needs Python 3.11+ and make; every target builds .venv from nothing.
PYTHON ?= python3
JOBS ?= 2

VENV := .venv
READY := $(VENV)/.installed

# Benchmarks that train for minutes to hours.
TRAININGS := $(addprefix benchmarks/,balance.py clip_training.py distilled_photographs.py further_teacher.py mode_switching.py pilot.py positions.py ssl_ablation.py ssl_collapse.py ssl_continuing.py ssl_photographs.py)
MEASURES := $(filter-out %/common.py $(TRAININGS),$(wildcard benchmarks/*.py))

.PHONY: demo test test-slow bench bench-slow lint

demo: $(READY)
	$(VENV)/bin/synoptic demo out=runs/demo

# A module stays in one worker, which makes its fixtures once: the demo takes minutes.
test: $(READY)
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile -rs --durations=15

test-slow: $(READY)
	$(VENV)/bin/python -m pytest -m slow -rs --durations=0

bench: SCRIPTS = $(MEASURES)
bench-slow: SCRIPTS = $(TRAININGS)
bench bench-slow: $(READY)
	@failed=; for script in $(sort $(SCRIPTS)); do \
		echo "== $$script"; $(VENV)/bin/python $$script || failed="$$failed $$script"; \
	done; test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "synoptic needs Python 3.11 or later; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
