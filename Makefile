# make demo | test | check | soak | bench. The first creates .venv and installs; later ones do not call pip again.
.PHONY: demo test check soak bench clean

VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/installed
export HF_HUB_OFFLINE := 1

demo: $(INSTALLED)
	rm -rf demo
	$(VENV)/bin/cohort-scorer demo demo

test: $(INSTALLED)
	$(PYTHON) -m pytest -m "not soak" --numprocesses 2 --dist loadfile

check: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(MAKE) test

soak: $(INSTALLED)
	$(PYTHON) -m pytest -m soak

bench: $(INSTALLED)
	$(PYTHON) -m pytest tests/benchmark -s

clean:
	rm -rf $(VENV) demo

$(INSTALLED): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt hatchling editables setuptools wheel
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--no-build-isolation --editable '.[development]'
	touch $@
