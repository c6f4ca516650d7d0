# Targets install first; with everything in place that takes a second.
PYTHON ?= python3
EXTRAS ?= mm,gan,nlp,classification,dev
TASK ?= detection
SEEDS ?= 1
PYTEST_ARGS ?=
# Tests at once: one a core. A file's tests stay together, so that what they share is made once.
WORKERS ?= auto

VENV := .venv
RUN := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint format bench clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: ## install into .venv (EXTRAS=mm,gan,nlp,classification,dev; PYTHON=python3)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "Python 3.11 or newer is needed, %s is %d.%d: make install PYTHON=python3.11" % (sys.executable, v[0], v[1]))'
	@$(PYTHON) tools/install.py --venv $(VENV) --extras "$(EXTRAS)"

demo: install ## train teacher, student and distilled student; write a report (SEEDS=3 TASK=detection)
	@$(RUN) tools/demo.py --task $(TASK) --seeds $(SEEDS)

test: install ## run the tests that take seconds (PYTEST_ARGS="-k kl -x" WORKERS=0)
	@$(RUN) -m pytest -n $(WORKERS) --dist loadfile -m "not slow" $(PYTEST_ARGS)

test-all: install ## run every test
	@$(RUN) -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

lint: install ## check style (ruff) and types (pyright)
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m pyright

format: install ## let ruff rewrite what it can
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format

bench: ## install the packages compared with too, and run each script in benchmarks/
	@$(MAKE) --no-print-directory install EXTRAS="$(EXTRAS),bench"
	@set -e; for script in benchmarks/*.py; do echo "==> $$script"; $(RUN) "$$script"; done

clean: ## delete builds and caches; .venv and work_dirs stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find core tasks configs tools tests taskdistill -name __pycache__ -type d -prune -exec rm -rf {} +
